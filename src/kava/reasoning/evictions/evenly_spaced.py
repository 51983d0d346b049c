"""Eviction by position: keep evenly spaced tokens of the chain of thought (ours, a baseline)."""

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs, evenly_spaced, select_top_k
from kava.shapes import Bool, Float, Int


class EvenlySpaced(Eviction):
    """Keep the first token of each of as many equal spans as there are slots."""

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return equal scores for all tokens, [batch, kv_heads, steps]; `select` ignores them."""
        return inputs.keys.new_zeros(inputs.keys.shape[:3])

    def select(
        self, scores: Float[Tensor, "batch kv_heads steps"], inputs: EvictionInputs, budget: int
    ) -> tuple[Int[Tensor, "batch kv_heads {budget}"], Bool[Tensor, "batch kv_heads {budget}"]]:
        """Select the first token of each span; see `Eviction.keep` for what is returned."""
        marked = evenly_spaced(inputs, budget)[:, None].expand_as(scores)
        return select_top_k(marked.to(scores.dtype), inputs, budget)


IMPLEMENTATION = EvenlySpaced
