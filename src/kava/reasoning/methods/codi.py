"""CODI (arXiv:2502.21074): sequential latents, distilled from the teacher's hidden states.

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
    """CODI (Shen et al., arXiv:2502.21074), with question and teacher computed once per step.

    Six latents and a weight of 20 for L_CODI, as theirs on Llama-1B. Their code also compares the
    embeddings (`codi.include_embeddings`); by default, L_CODI does not include them here (see
    docs/papers.md, CODI). Their code also runs the teacher twice per step.
    """

    label = "CODI"
    paper = "2502.21074"
    iterates = False
    defaults = {"num_latents": 6, "codi": {"weight": 20.0, "loss": "smooth_l1"}}

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """Generate the latents one at a time, with one forward pass each."""
        return sequential.think(reasoner, question, self.recipe.num_latents, suffix)

    def latent_calls(self, question, num_iterations, suffix) -> list[Call]:
        """Return the forward passes: <bot> and each latent have a pass of their own."""
        return one_by_one(question, self.recipe.num_latents, suffix)

    def projected_latents(self, num_iterations: int) -> int:
        """Return the number of projected latent states: each latent once."""
        return super().projected_latents(1)

    def passes(self, num_iterations: int) -> int:
        """Return M, since the forward pass of <bot> belongs to the prefill."""
        return self.recipe.num_latents


IMPLEMENTATION = CODI
