"""Aligned KaVa (ours): each latent stands for one token of the chain of thought, from its step on.

Under KaVa, each layer and head keeps other tokens, so that what a latent has to match is hard to
foresee, and only the last pass is supervised (docs/log.md). Here, latents come in blocks of c
(`latent_readout.width`), one for each reasoning step; all layers and heads keep the same c tokens
of the step, by default the last ones, and a latent matches the keys and values of its token and
predicts it. Step i needs i passes, since it reads the result of the one before it: from pass i on,
the latents of its block should predict their tokens in every pass.

L = CE_student + w_t CE_teacher + a1 L_CODI + a2 L_KV + a3 CE(kept token | latent)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kava.errors import KavaError
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.losses.latent_readout import latent_readout_loss
from kava.reasoning.methods._base import Batch, LossTerms, TeacherOutput, Uniform
from kava.reasoning.methods._kv import KvDistillation, Selection
from kava.reasoning.methods._readout import states_read
from kava.reasoning.methods._work import Work
from kava.reasoning.methods.kava import KaVa
from kava.reasoning.methods.pccot import PCCoT
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe, Section


class AlignedOptions(Section):
    """Options of Aligned KaVa.

    readout_after: in which passes the latents of step i (1, 2, ...) should predict their tokens.
        `own_pass`: in pass i and all after it (in pass T if i is larger). `last_pass`: in pass T
        alone, as all other losses.
    """

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
        self.width = recipe.latent_readout.width or recipe.num_latents
        self.kv = KvDistillation(recipe, recipe.latent_readout.width)
        self.queries = self.kv.queries  # the tokens are chosen even if L_KV has no weight
        self.every_pass = self.reads and self.options.readout_after == "own_pass"
        self.keeps_passes = self.keeps_passes or self.every_pass

    def check(self, reasoner: ReasonerBase) -> None:
        """Check what KaVa checks, and that all heads keep the same tokens.

        Raises:
            KavaError: they do not.
        """
        super().check(reasoner)
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
        last = batch.get("iterations", self.recipe.num_iterations)  # T may be drawn
        own = (latents // self.width + 1).clamp(max=last)
        first = own if self.every_pass else torch.full_like(own, last)
        supervised = torch.arange(last + 1, device=rows.device)[:, None] >= first
        passes, labels = supervised.nonzero(as_tuple=True)
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
            at = batch["readout_passes"] if self.keeps_passes else 0  # else the last one alone
            read = states[at, batch["readout_rows"], batch["readout_latents"]]
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
