"""Aligned KaVa (ours): each latent stands for one token of the chain of thought, step by step.

Under KaVa, each layer and head keeps other tokens, so that what a latent has to match is hard to
foresee, and only the last pass is supervised (docs/log.md). Here, latents come in blocks of c
(`latent_readout.width`), one for each reasoning step; all layers and heads keep the same c tokens
of the step, by default the last ones, and a latent matches the keys and values of its token and
predicts it. Step i (1, 2, ...) reads the result of the one before it, so that its block can be
right after i passes: from pass i on it should predict its tokens. It is computed in a window of w
passes, by default three: one to begin, one to predict its tokens, and one to compute its keys and
values from what it predicted. Then it is final.

L = CE_student + w_t CE_teacher + a1 L_CODI + a2 L_KV + a3 CE(kept token | latent)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kava.errors import KavaError
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents import windowed
from kava.reasoning.latents.windowed import Schedule
from kava.reasoning.losses.latent_readout import latent_readout_loss
from kava.reasoning.methods._base import Batch, LossTerms, TeacherOutput, Uniform
from kava.reasoning.methods._kv import KvDistillation, Selection
from kava.reasoning.methods._readout import states_read
from kava.reasoning.methods._work import ForwardPass, Work, consecutive_passes
from kava.reasoning.methods.kava import KaVa
from kava.reasoning.methods.pccot import PCCoT
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe, Section


class AlignedOptions(Section):
    """Options of Aligned KaVa.

    window: w, the number of passes in which each block is computed; null for all T + 1 passes, as
        in Jacobi iteration. With K blocks, T (`num_iterations`) should be K + w - 2; with fewer
        iterations, some blocks begin together, and with more, each is computed longer.
    readout_after: in which passes the latents of step i should predict their tokens. `own_pass`: in
        pass i and all after it in which they are computed. `last_pass`: in the last of them alone.
    """

    window: int | None = Field(default=3, ge=1)
    readout_after: Literal["own_pass", "last_pass"] = "own_pass"


class Aligned(KaVa):
    """KaVa whose latents stand for the same tokens in all layers and heads, and predict them.

    `latent_readout.target` is `own` or `slot` for the kept token itself, or `next` for the token
    that follows it in the chain of thought (the answer prompt after the last one).
    """

    label = "Aligned KaVa"
    paper = None
    Options = AlignedOptions
    defaults = {
        "kv": {"eviction": {"name": "crop_left", "shared": "max"}},
        "latent_readout": {"weight": 1.0, "target": "slot"},
    }

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.kv = KvDistillation(recipe, recipe.latent_readout.width)
        self.queries = self.kv.queries  # the tokens are chosen even if L_KV has no weight
        self.keeps_passes = self.keeps_passes or self.reads
        self.finds_iterations = self.options.window is None

    @property
    def block(self) -> int:
        """Number of latents for each reasoning step, c; 1 if the recipe sets none."""
        return self.recipe.latent_readout.width or 1

    @property
    def width(self) -> int:
        """Number of latents in a block, c; all M if the recipe sets none."""
        return self.recipe.latent_readout.width or self.recipe.num_latents

    def schedule(self, num_iterations: int) -> Schedule:
        """Return which latents are computed in which pass."""
        return Schedule(self.recipe.num_latents, self.width, num_iterations, self.options.window)

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """Generate the latents block by block, or all in parallel without a window."""
        if self.options.window is None:
            return super().latents(reasoner, question, suffix, num_iterations, keep_all)
        return windowed.think(reasoner, question, self.schedule(num_iterations), suffix, keep_all)

    def latent_calls(self, question, num_iterations, suffix) -> list[ForwardPass]:
        """Return the forward passes, each over the blocks of the window."""
        schedule, calls = self.schedule(num_iterations), []
        for t in range(num_iterations + 1):
            begin, end = schedule.computed(t)
            columns = end - begin + (suffix if t == num_iterations else torch.zeros_like(suffix))
            if t:
                calls.append(ForwardPass(columns, question + 1 + begin))
            else:
                calls += consecutive_passes(1 + columns, after=question)
        return calls

    def projected_latents(self, num_iterations: int) -> int:
        """Return how many latent states of one example pass through the projection P."""
        if self.options.window is None or self.recipe.projection == "none":
            return super().projected_latents(num_iterations)
        made = [self.schedule(num_iterations).projected(t) for t in range(num_iterations)]
        return sum(to - first for first, to in made)

    def check(self, reasoner: ReasonerBase) -> None:
        """Check what KaVa checks, that all heads keep the same tokens, and the supervised passes.

        Raises:
            KavaError: heads keep different tokens, or passes that are not computed are supervised.
        """
        super().check(reasoner)
        if self.options.window and self.distils and self.recipe.kv.supervise == "all":
            raise KavaError(
                "aligned: kv.supervise is all, but with a window latents are not computed in all "
                "passes; set it to last, or method_options.window to null",
                code="reasoning.supervised-passes",
                key="kv.supervise",
            )
        if self.recipe.kv.eviction.shared == "none":
            raise KavaError(
                "aligned: kv.eviction.shared is none, but a latent can only predict its token if "
                "all layers and heads keep the same one; set it to max or mean",
                code="reasoning.not-shared",
                key="kv.eviction.shared",
            )

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch with what PCCoT draws for it, and which latents predict in which pass.

        These are `readout_passes`, `readout_rows` and `readout_latents`, [labels] each; the tokens
        that they stand for follow from the teacher.
        """
        batch = PCCoT.apply_stage(self, batch, epoch, uniform)
        filled = [
            torch.arange(size, device=mask.device) < mask.sum(1, keepdim=True)
            for mask, size in self.kv.blocks(batch)
        ]
        rows, latents = torch.cat(filled, dim=1).nonzero(as_tuple=True)
        iterations = batch.get("iterations", self.recipe.num_iterations)  # T may be drawn
        schedule, each = self.schedule(iterations), self.options.readout_after == "own_pass"
        lasts = [schedule.last_pass(block) for block in range(schedule.blocks)]
        firsts = [min(block + 1, last) for block, last in enumerate(lasts)] if each else lasts
        first, last = torch.tensor((firsts, lasts), device=rows.device)[:, latents // self.width]
        passes = torch.arange(iterations + 1, device=rows.device)[:, None]
        passes, labels = ((first <= passes) & (passes <= last)).nonzero(as_tuple=True)
        return {
            **batch,
            "readout_passes": passes,
            "readout_rows": rows[labels],
            "readout_latents": latents[labels],
        }

    def counts(self, batch: Batch) -> LossTerms:
        """Return the denominators of PCCoT, of L_KV and of the readout."""
        found = PCCoT.counts(self, batch)
        if self.distils:
            found |= self.kv.counts(batch)
        if self.reads:
            rows = batch["readout_rows"]
            found["readout"] = torch.full((), rows.numel(), dtype=torch.long, device=rows.device)
        return found

    def work(self, batch: Batch) -> Work:
        """Return the minimum work of PCCoT plus the logits of the kept tokens."""
        least = PCCoT.work(self, batch)
        if not self.reads:
            return least
        return replace(least, labels=least.labels + batch["readout_rows"].numel())

    def combine(
        self,
        reasoner,
        batch: Batch,
        counts: LossTerms,
        teacher: TeacherOutput,
        student: LatentState,
    ) -> LossTerms:
        """Return the terms of PCCoT, L_KV and the readout of the kept tokens, if weighted."""
        terms = PCCoT.combine(self, reasoner, batch, counts, teacher, student)
        chosen = self.kv.choose(batch, teacher)
        if self.distils:
            terms |= self.kv.terms(reasoner, batch, counts, teacher, student, chosen)
            terms["loss"] = terms["loss"] + self.kv.weighted_loss(terms)
        if self.reads:
            target = self.recipe.latent_readout.target
            ids = kept_tokens(batch, chosen[0], target == "next")
            every = range(len(student.states))
            states = torch.stack([states_read(student, t, target) for t in every])
            places = [batch[f"readout_{name}"] for name in ("passes", "rows", "latents")]
            read = states[tuple(places)]
            terms["readout"] = latent_readout_loss(reasoner, read, ids, counts["readout"])
            terms["loss"] = terms["loss"] + self.readout.weight * terms["readout"]
        return terms


def kept_tokens(batch: Batch, kept: Selection, following: bool) -> Tensor:
    """Return the token id that each latent should predict, [labels].

    Args:
        batch: a batch from `Aligned.apply_stage`.
        kept: the tokens that are kept, the same for all heads.
        following: whether the label is the token after the kept one.
    """
    rows = batch["readout_rows"]
    columns = kept.columns[rows, 0, batch["readout_latents"]]
    if not following:
        return batch["steps"][rows, columns]
    # Padding stands between the last step and the answer.
    columns = torch.where(
        columns + 1 < batch["steps_mask"].sum(1)[rows], columns + 1, batch["steps"].shape[1]
    )
    return torch.cat((batch["steps"], batch["answer"]), dim=1)[rows, columns]


IMPLEMENTATION = Aligned
