"""LOTUS (arXiv:2606.31779): one block of latents per reasoning step, refined in loops.

Q <bot> | K x c latents, R loops | <eot> "The answer is:" a EOS

L = CE on the answer + lambda CE of each latent with its own reasoning token
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from kava.errors import KavaError
from kava.reasoning import batching
from kava.reasoning.latents import looped
from kava.reasoning.methods._base import (
    Batch,
    Curriculum,
    LossTerms,
    Uniform,
    label_loss,
    prefill_question,
    student_suffix,
    teacher_forward,
)
from kava.reasoning.methods._kv import KvMethod
from kava.reasoning.methods._multiplex import MultiplexLoss
from kava.reasoning.methods._work import (
    ForwardPass,
    Work,
    consecutive_passes,
    lengths,
    parallel_passes,
)
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe


class LotusOptions(Curriculum):
    """Curriculum of LOTUS: each stage replaces one more step by latents, which take more loops.

    epochs_per_stage: E, the number of epochs of each stage before the last.
    readout_after: when block t of the latents is supervised. `loops`: after all loops, as in the
        paper and in its authors' file for the 3B model. `own_loop`: after loop t (loop t R / K if
        R is not K), as in their file for the 1B model.
    reset_optimizer: reset the moments of AdamW at each new stage.
    """

    epochs_per_stage: float = Field(default=1.0, gt=0)
    readout_after: Literal["loops", "own_loop"] = "loops"
    reset_optimizer: bool = False

    def scale_epochs(self, factor: float) -> LotusOptions:
        """Return the same schedule stretched to `factor` times as many epochs."""
        return self.model_copy(update={"epochs_per_stage": self.epochs_per_stage * factor})


class Lotus(KvMethod):
    """LOTUS (arXiv:2606.31779): latent j of block i predicts token j of reasoning step i.

    In stage s = min(floor(e / E), K) at epoch e, the first s steps are replaced by s blocks of
    latents, which are refined in s loops (s R / K if R is not K). The remaining steps stay in the
    text between <eot> and the answer; stage 0 is plain chain of thought behind <bot> <eot>. An
    example with more than K steps keeps the surplus steps in its text to the end of the training.
    At inference, everything after <eot> is therefore generated: surplus steps, if any, then "The
    answer is:" and the answer, in `eval.max_new_tokens` (64) tokens. The first of these tokens is
    the likeliest one, even if the answer is sampled.

    With `kv.weight`, each block also matches the keys and values of its step in the teacher's KV
    cache, compressed to c tokens (L_KV; its use here is our addition). The teacher is then trained
    with weight `teacher_ce_weight`.
    """

    label = "LOTUS"
    paper = "2606.31779"
    Options = LotusOptions
    iterates = True
    begins_with_prompt = False
    losses = ("kv", "latent_readout", "multiplex")
    defaults = {
        "drop_last_step": False,
        "projection": "none",
        "num_latents": 150,
        "num_iterations": 6,
        "latent_readout": {"weight": 0.05, "width": 25},
        "eval": {"max_new_tokens": 64},
    }

    def __init__(self, recipe: Recipe):
        self.width = recipe.latent_readout.width or recipe.num_latents
        super().__init__(recipe, self.width)
        self.multiplex = MultiplexLoss(recipe)

    def check(self, reasoner) -> None:
        """Check that the recipe sets a block width and that the latents come in whole blocks.

        Raises:
            KavaError: they do not, or the backbone does not support `kv.keys`.
        """
        if self.recipe.latent_readout.width is None:
            raise KavaError(
                "lotus needs latent_readout.width, the number of latents for each step",
                code="reasoning.no-width",
                key="latent_readout.width",
            )
        super().check(reasoner)

    @property
    def blocks(self) -> int:
        """Number of blocks of latents, K."""
        return self.recipe.num_latents // self.width

    @property
    def block(self) -> int:
        """Number of latents per reasoning step, c."""
        return self.width

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """Generate all K blocks of latents, refined in loops."""
        return looped.think(
            reasoner, question, self.recipe.num_latents, num_iterations, suffix, keep_all
        )

    def latent_calls(self, question, num_iterations, suffix) -> list[ForwardPass]:
        """Return the forward passes: pass 0 and R loops over all blocks."""
        return parallel_passes(question, self.recipe.num_latents, num_iterations, suffix)

    def reasoning_work(self, question: Tensor, num_iterations: int) -> Work | None:
        """Return the minimum work, which includes the logits of the first token after <eot>."""
        work = super().reasoning_work(question, num_iterations)
        return work and replace(work, labels=len(question))

    def stage(self, epoch: float) -> int:
        """Return the stage, which is the number of steps replaced by latents, from 0 to K."""
        if epoch >= self.last_stage_at(0):
            return self.blocks
        return math.floor(epoch / self.options.epochs_per_stage + 1e-9)

    def last_stage_at(self, max_steps: int) -> float:
        """Return the epoch at which the last block of latents is added."""
        return self.blocks * self.options.epochs_per_stage

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch with its stage and the labels of the latents.

        The batch gains `stage`, the number of steps replaced by latents, and `left`, the batch
        without these steps.
        """
        stage = self.stage(epoch)
        steps = batch["steps"].new_full((batch["steps"].shape[0],), stage)
        # Steps beyond K stay in the text to the end of the training, and are generated as text.
        left = batching.drop_first_tokens(batch, batching.tokens_of_steps(batch, steps))
        batch = {**batch, "stage": stage, "left": left}
        replaced, latents = self.select_replaced_steps(batch), stage * self.width
        batch = self.multiplex.add_spans(batch, replaced, latents, uniform)
        return self.readout.add_targets(batch, replaced, latents)

    def counts(self, batch: Batch) -> LossTerms:
        """Return the denominators: labels after <eot>, supervised latents, and those of L_KV."""
        left = super().counts(batch["left"])
        found = {**super().counts(batch), "student": left["teacher"], **self.readout.counts(batch)}
        found |= self.multiplex.counts(batch)
        if self.distils:
            found |= self.kv.counts(self.select_replaced_steps(batch), batch["stage"] * self.width)
        return found

    def select_replaced_steps(self, batch: Batch) -> Batch:
        """Return the batch with only those steps in `step_of` that latents currently replace."""
        now = (batch["step_of"] >= 0) & (batch["step_of"] < batch["stage"])
        return {**batch, "step_of": batch["step_of"].masked_fill(~now, -1)}

    def loops(self, stage: int) -> int:
        """Return the number of loops with `stage` blocks of latents: R / K for each, rounded up."""
        return -(-self.recipe.num_iterations * stage // self.blocks)

    def work(self, batch: Batch) -> Work:
        """Return the minimum work of a step in its stage.

        It consists of the question, the latents with their loops, the remaining steps and the
        answer, and the teacher if L_KV is used.
        """
        stage = batch["stage"]
        question, left, answer = lengths(batch["left"])
        loops, latents = self.loops(stage), stage * self.width
        calls = [
            *consecutive_passes(question),
            *parallel_passes(question, latents, loops, 1 + left + answer),
        ]
        labels = batch["left"]["teacher_ids"].numel() + batch["readout_ids"].numel()
        labels += self.multiplex.labels(batch)
        if self.distils:
            _, steps, _ = lengths(batch)
            calls += consecutive_passes(steps + answer, after=question)
            labels += batch["teacher_ids"].numel()
        projected = 0 if self.recipe.projection == "none" else len(question) * latents * loops
        return Work(calls, labels, projected)

    def loss(self, reasoner, batch: Batch, counts: LossTerms) -> LossTerms:
        """Run the forward passes of a training step and return `loss` and all logged terms."""
        recipe, stage = self.recipe, batch["stage"]
        by_loop = stage > 0 and self.options.readout_after == "own_loop"
        question = prefill_question(reasoner, batch)
        left = batch["left"]
        state = looped.think(
            reasoner,
            question[0],
            stage * self.width,
            self.loops(stage),
            student_suffix(reasoner, left, steps=True),
            keep_all=by_loop or (self.distils and recipe.kv.supervise == "all"),
        )
        # The authors' file for 1B supervises block t after loop t; the paper, all after the last.
        passes = [self.loops(block + 1) for block in range(stage)] if by_loop else None
        terms = {
            "student_ce": label_loss(reasoner, state.suffix, left, "teacher", counts["student"]),
            "readout": self.readout.loss(reasoner, batch, counts, state, passes),
        }
        loss = terms["student_ce"] + self.readout.weight * terms["readout"]
        added, weighted = self.multiplex.terms(reasoner, batch, counts, state)
        terms, loss = terms | added, loss + weighted
        if self.distils:
            teacher = teacher_forward(reasoner, question, batch, queries=self.kv.queries)
            terms["teacher_ce"] = label_loss(
                reasoner, teacher.hidden, batch, "teacher", counts["teacher"]
            )
            supervised = self.select_replaced_steps(batch)
            terms |= self.kv.terms(reasoner, supervised, counts, teacher, state)
            loss = loss + recipe.teacher_ce_weight * terms["teacher_ce"]
            loss = loss + self.kv.weighted_loss(terms)
        return {"loss": loss, **terms}


IMPLEMENTATION = Lotus
