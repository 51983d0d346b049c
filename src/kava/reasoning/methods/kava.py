"""KaVa (arXiv:2510.02312): PCCoT plus distillation of the teacher's compressed KV cache.

L = CE_student + w_t CE_teacher + a1 L_CODI + a2 L_KV
"""

from dataclasses import replace

from kava.reasoning.methods._base import Batch, LossTerms, TeacherOutput, Uniform
from kava.reasoning.methods._kv import KvMethod
from kava.reasoning.methods._work import Work
from kava.reasoning.methods.pccot import PCCoT
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe


class KaVa(KvMethod, PCCoT):
    """KaVa (Kuzina, Pioro, Whatmough, Bejnordi, arXiv:2510.02312).

    With `latent_readout.weight`, each latent is also trained to predict a reasoning token. This is
    the loss of LOTUS; its use here is our addition.
    """

    label = "KaVa"
    paper = "2510.02312"
    losses = ("codi", "kv", "latent_readout", "multiplex")
    defaults = {}

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.reads = recipe.latent_readout.weight > 0
        self.queries = self.kv.queries if self.distils else None

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch, with labels of the latents added for each loss that needs them."""
        batch, latents = super().apply_stage(batch, epoch, uniform), self.recipe.num_latents
        return self.readout.add_targets(batch, batch, latents) if self.reads else batch

    def counts(self, batch: Batch) -> LossTerms:
        """Return the denominators of PCCoT, of L_KV (filled slots) and of the latent readout."""
        found = super().counts(batch)
        if self.distils:
            found |= self.kv.counts(batch)
        return found | self.readout.counts(batch) if self.reads else found

    def work(self, batch: Batch) -> Work:
        """Return the minimum work of PCCoT plus the logits that the latent readout needs."""
        least = super().work(batch)
        if not self.reads:
            return least
        return replace(least, labels=least.labels + batch["readout_ids"].numel())

    def combine(
        self,
        reasoner,
        batch: Batch,
        counts: LossTerms,
        teacher: TeacherOutput,
        student: LatentState,
    ) -> LossTerms:
        """Return the terms of PCCoT, L_KV and the latent readout, the latter two if weighted."""
        terms = super().combine(reasoner, batch, counts, teacher, student)
        if self.distils:
            terms |= self.kv.terms(reasoner, batch, counts, teacher, student)
            terms["loss"] = terms["loss"] + self.kv.weighted_loss(terms)
        if self.reads:
            terms["readout"] = self.readout.loss(reasoner, batch, counts, student)
            terms["loss"] = terms["loss"] + self.readout.weight * terms["readout"]
        return terms


IMPLEMENTATION = KaVa
