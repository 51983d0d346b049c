"""CODI: latents one at a time, taught by the states of a teacher who writes.

teacher   Q | C | "The answer is:" a EOS
student   Q <bot> z_1 -> z_2 -> ... -> z_M <eot> "The answer is:" a EOS

L = CE_student + w_t CE_teacher + a1 L_CODI
"""

from __future__ import annotations

from kava.reasoning.latents import sequential
from kava.reasoning.methods._work import Call, one_by_one
from kava.reasoning.methods.pccot import PCCoT
from kava.reasoning.states import LatentState


class CODI(PCCoT):
    """Shen et al., arXiv:2502.21074, with question and teacher computed once.

    Six latents, factor 20 (theirs, on Llama-1B). Their code also compares the embeddings
    (`codi.include_embeddings`); the spec's L_CODI does not.
    """

    label = "CODI"
    paper = "2502.21074"
    iterates = False
    defaults = {"num_latents": 6, "codi": {"weight": 20.0, "loss": "smooth_l1"}}

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """One backbone call for each latent."""
        return sequential.think(reasoner, question, self.recipe.num_latents, suffix)

    def latent_calls(self, question, num_iterations, suffix) -> list[Call]:
        """<bot> and each latent in a pass of its own."""
        return one_by_one(question, self.recipe.num_latents, suffix)

    def projected_latents(self, num_iterations: int) -> int:
        """Each latent once."""
        return super().projected_latents(1)

    def passes(self, num_iterations: int) -> int:
        """M: the call for <bot> belongs to the prefill."""
        return self.recipe.num_latents


IMPLEMENTATION = CODI
