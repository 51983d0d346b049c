"""KaVa: PCCoT whose latents also match the teacher's compressed key/value cache.

L = CE_student + w_t CE_teacher + a1 L_CODI + a2 L_KV
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from kava.reasoning.methods._base import Batch, TeacherOutput, Terms, Uniform
from kava.reasoning.methods._kv import KvDistillation
from kava.reasoning.methods._readout import Readout
from kava.reasoning.methods._work import Work
from kava.reasoning.methods.pccot import PCCoT
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe


class KaVa(PCCoT):
    """Kuzina, Pioro, Whatmough, Bejnordi, arXiv:2510.02312.

    With `latent_readout.weight` each latent also names a reasoning token (LOTUS's loss; ours here).
    """

    label = "KaVa"
    paper = "2510.02312"
    losses = ("codi", "kv", "latent_readout")
    defaults = {}

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.kv, self.readout = KvDistillation(recipe), Readout(recipe)
        self.distils, self.reads = recipe.kv.weight > 0, recipe.latent_readout.weight > 0
        self.needs_queries = self.distils and self.kv.needs_queries

    def check(self, reasoner) -> None:
        """Raise a KavaError where the backbone or the recipe does not fit."""
        if self.distils:
            self.kv.check(reasoner)
        self.readout.check()

    def check_rows(self, rows) -> None:
        """Raise a KavaError where a trace is too long for the eviction."""
        if self.distils:
            self.kv.check_rows(rows)

    def modules(self, reasoner) -> nn.ModuleDict:
        """The projection of keys and values, if any."""
        return self.kv.modules(reasoner) if self.distils else nn.ModuleDict()

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """With what the latents should name, if they are read."""
        return (
            self.readout.add_targets(batch, batch, self.recipe.num_latents) if self.reads else batch
        )

    def counts(self, batch: Batch) -> Terms:
        """PCCoT's, filled slots and supervised latents."""
        found = super().counts(batch)
        if self.distils:
            found |= self.kv.counts(batch)
        return found | self.readout.counts(batch) if self.reads else found

    def work(self, batch: Batch) -> Work:
        """PCCoT's, and the logits of latents that are read."""
        least = super().work(batch)
        if not self.reads:
            return least
        return replace(least, labels=least.labels + batch["readout_ids"].numel())

    def combine(
        self, reasoner, batch: Batch, counts: Terms, teacher: TeacherOutput, student: LatentState
    ) -> Terms:
        """PCCoT's terms, L_KV, and the readout if it has a weight."""
        terms = super().combine(reasoner, batch, counts, teacher, student)
        if self.distils:
            terms |= self.kv.terms(reasoner, batch, counts, teacher, student)
            terms["loss"] = terms["loss"] + self.kv.weighted_loss(terms)
        if self.reads:
            terms["readout"] = self.readout.loss(reasoner, batch, counts, student.latents)
            terms["loss"] = terms["loss"] + self.readout.weight * terms["readout"]
        return terms


IMPLEMENTATION = KaVa
