"""Latents that are generated one at a time, as part of a method."""

from kava.reasoning.latents import sequential
from kava.reasoning.methods._base import LatentMethod
from kava.reasoning.methods._work import ForwardPass, sequential_passes
from kava.reasoning.states import LatentState


class SequentialMethod(LatentMethod):
    """Base class of methods whose latents each follow from the one before (CODI, Coconut)."""

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """Generate the latents one at a time, with one forward pass each."""
        return sequential.think(reasoner, question, self.recipe.num_latents, suffix)

    def latent_calls(self, question, num_iterations, suffix) -> list[ForwardPass]:
        """Return the forward passes: <bot> and each latent have a pass of their own."""
        return sequential_passes(question, self.recipe.num_latents, suffix)

    def projected_latents(self, num_iterations: int) -> int:
        """Return the number of projected latent states: each latent once, if projected at all."""
        return super().projected_latents(1)

    def passes(self, num_iterations: int) -> int:
        """Return M, since the forward pass of <bot> belongs to the prefill."""
        return self.recipe.num_latents
