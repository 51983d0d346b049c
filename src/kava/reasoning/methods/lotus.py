"""LOTUS: blocks of latents, one for each step, refined in loops and read against their tokens.

Q <bot> | K x c latents, R loops | <eot> "The answer is:" a EOS

L = CE on the answer + lambda CE of each latent with its own reasoning token
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import nn

from kava.errors import KavaError
from kava.reasoning import batching
from kava.reasoning.latents import looped
from kava.reasoning.methods._base import (
    Batch,
    Curriculum,
    LatentMethod,
    Terms,
    Uniform,
    label_loss,
    prefill_question,
    student_suffix,
    teacher_forward,
)
from kava.reasoning.methods._kv import KvDistillation
from kava.reasoning.methods._readout import Readout
from kava.reasoning.methods._work import Call, Work, chain, lengths, refined
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe


class Options(Curriculum):
    """The curriculum: each stage turns one more step into latents, with one more loop."""

    epochs_per_stage: float = Field(default=1.0, gt=0)
    reset_optimizer: bool = False

    def scale_epochs(self, factor: float) -> Options:
        """The same schedule in `factor` times as many epochs."""
        return self.model_copy(update={"epochs_per_stage": self.epochs_per_stage * factor})


class Lotus(LatentMethod):
    """arXiv:2606.31779. Token j of step i is read at latent j of block i.

    In stage e (from 1) the first min(e, K) steps are latents, refined in min(e, R) loops; steps
    after them stay written, before the answer. A row with more than K steps keeps its surplus
    written to the end; an answer is asked for right after <eot> all the same. With `kv.weight`
    each block also matches its step's keys and values in a teacher's cache, compressed to c
    (L_KV, ours here); the teacher is then trained by `teacher_ce_weight`.
    """

    label = "LOTUS"
    paper = "2606.31779"
    Options = Options
    iterates = True
    losses = ("kv", "latent_readout")
    defaults = {
        "drop_last_step": False,
        "projection": "none",
        "num_latents": 150,
        "num_iterations": 6,
        "latent_readout": {"weight": 0.05, "width": 25},
    }

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.width = recipe.latent_readout.width or recipe.num_latents
        self.kv, self.readout = KvDistillation(recipe, self.width), Readout(recipe)
        self.distils = recipe.kv.weight > 0

    def check(self, reasoner) -> None:
        """Raise a KavaError where the recipe does not make whole blocks."""
        if self.recipe.latent_readout.width is None:
            raise KavaError(
                "lotus needs latent_readout.width, the latents of a step",
                code="reasoning.no-width",
                key="latent_readout.width",
            )
        self.readout.check()
        if self.distils:
            self.kv.check(reasoner)

    def check_rows(self, rows) -> None:
        """Raise a KavaError where a step is too long for the eviction."""
        if self.distils:
            self.kv.check_rows(rows)

    def modules(self, reasoner) -> nn.ModuleDict:
        """The projection of keys and values, if any."""
        return self.kv.modules(reasoner) if self.distils else nn.ModuleDict()

    @property
    def blocks(self) -> int:
        """K."""
        return self.recipe.num_latents // self.width

    @property
    def block(self) -> int:
        """c, the latents of a step."""
        return self.width

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """All K blocks."""
        return looped.think(
            reasoner, question, self.recipe.num_latents, num_iterations, suffix, keep_all
        )

    def latent_calls(self, question, num_iterations, suffix) -> list[Call]:
        """Pass 0 and R loops over all blocks."""
        return refined(question, self.recipe.num_latents, num_iterations, suffix)

    def stage(self, epoch: float) -> int:
        """From 1, the number of steps that are latents, to K."""
        if epoch >= self.last_stage_at(0):
            return self.blocks
        return 1 + math.floor(epoch / self.options.epochs_per_stage + 1e-9)

    def last_stage_at(self, longest: int) -> float:
        """Where the last block comes in."""
        return (self.blocks - 1) * self.options.epochs_per_stage

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """`left`: the batch without the steps that are latents now; `stage` is their number."""
        stage = self.stage(epoch)
        steps = batch["steps"].new_full((batch["steps"].shape[0],), stage)
        left = batching.drop_first_tokens(batch, batching.tokens_of_steps(batch, steps))
        batch = {**batch, "stage": stage, "left": left}
        return self.readout.add_targets(batch, self.supervised(batch), stage * self.width)

    def counts(self, batch: Batch) -> Terms:
        """Labels after <eot>, supervised latents, and what L_KV needs."""
        left = super().counts(batch["left"])
        found = {**super().counts(batch), "student": left["written"], **self.readout.counts(batch)}
        if self.distils:
            found |= self.kv.counts(self.supervised(batch), batch["stage"] * self.width)
        return found

    def supervised(self, batch: Batch) -> Batch:
        """The batch with the steps that are latents now, and no others, in `step_of`."""
        now = (batch["step_of"] >= 0) & (batch["step_of"] < batch["stage"])
        return {**batch, "step_of": batch["step_of"].masked_fill(~now, -1)}

    def loops(self, stage: int) -> int:
        """How many loops a stage has."""
        most = self.recipe.num_iterations
        return min(stage, most) if stage < self.blocks else most

    def work(self, batch: Batch) -> Work:
        """The question, the stage's latents and loops, what is left written; a teacher for L_KV."""
        stage = batch["stage"]
        question, left, answer = lengths(batch["left"])
        loops, latents = self.loops(stage), stage * self.width
        calls = [*chain(question), *refined(question, latents, loops, 1 + left + answer)]
        labels = batch["left"]["teacher_ids"].numel() + batch["readout_ids"].numel()
        if self.distils:
            _, steps, _ = lengths(batch)
            calls += chain(steps + answer, after=question)
            labels += batch["teacher_ids"].numel()
        projected = 0 if self.recipe.projection == "none" else len(question) * latents * loops
        return Work(calls, labels, projected)

    def loss(self, reasoner, batch: Batch, counts: Terms) -> Terms:
        """All loops of one step."""
        recipe, stage = self.recipe, batch["stage"]
        question = prefill_question(reasoner, batch)
        left = batch["left"]
        state = looped.think(
            reasoner,
            question[0],
            stage * self.width,
            self.loops(stage),
            student_suffix(reasoner, left, steps=True),
            keep_all=self.distils and recipe.kv.supervise == "all",
        )
        terms = {
            "student_ce": label_loss(reasoner, state.suffix, left, "teacher", counts["student"]),
            "readout": self.readout.loss(reasoner, batch, counts, state.latents),
        }
        loss = terms["student_ce"] + self.readout.weight * terms["readout"]
        if self.distils:
            teacher = teacher_forward(reasoner, question, batch, queries=self.kv.needs_queries)
            terms["teacher_ce"] = label_loss(
                reasoner, teacher.hidden, batch, "teacher", counts["written"]
            )
            seen = self.supervised(batch)
            terms |= self.kv.terms(reasoner, seen, counts, teacher, state)
            loss = (
                loss + recipe.teacher_ce_weight * terms["teacher_ce"] + self.kv.weighted_loss(terms)
            )
        return {"loss": loss, **terms}


IMPLEMENTATION = Lotus
