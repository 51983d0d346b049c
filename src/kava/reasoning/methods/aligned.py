"""Aligned KaVa (ours): each latent stands for one token of the chain of thought.

KaVa keeps other tokens in each layer and head, and few of those that later steps read, so what a
latent has to match is hard to foresee (docs/log.md). Here, all layers and heads keep the same
tokens: those that later steps attend to most. Each latent matches the keys and values of one of
them, and predicts it. With c latents for each step (`latent_readout.width`), the c tokens of a step
that later steps attend to most; with one, that is in practice the step's result.

L = CE_student + w_t CE_teacher + a1 L_CODI + a2 L_KV + a3 CE(kept token | latent)
"""

from __future__ import annotations

from dataclasses import replace

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
from kava.recipe.schema import Recipe


class Aligned(KaVa):
    """KaVa whose latents stand for the same tokens in all layers and heads, and predict them.

    `latent_readout.target` is `own` or `slot` for the kept token itself, or `next` for the token
    that follows it in the chain of thought (the answer prompt after the last one).
    """

    label = "Aligned KaVa"
    paper = None
    defaults = {
        "kv": {"eviction": {"name": "later_steps", "shared": "max"}},
        "latent_readout": {"weight": 1.0},
    }

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.kv = KvDistillation(recipe, recipe.latent_readout.width)
        self.queries = self.kv.queries  # the tokens are chosen even if L_KV has no weight

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
        """Return the batch with what PCCoT draws for it, and which latents stand for a token.

        They are `readout_rows` and `readout_latents`, [labels] each; the tokens follow from the
        teacher.
        """
        batch = PCCoT.apply_stage(self, batch, epoch, uniform)
        filled = [
            torch.arange(size, device=mask.device) < mask.sum(1, keepdim=True)
            for mask, size in self.kv.blocks(batch)
        ]
        rows, latents = torch.cat(filled, dim=1).nonzero(as_tuple=True)
        return {**batch, "readout_rows": rows, "readout_latents": latents}

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
            read = states_read(student, -1, target)
            read = read[batch["readout_rows"], batch["readout_latents"]]
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
