"""Eviction by attention: importance to the answer only, which is R-KV with lambda 1."""

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.reasoning.evictions.rkv import importance
from kava.shapes import Float


class Attention(Eviction):
    """Keep the tokens that the answer attends to most: S = I."""

    needs_attention = True

    def parts(self, inputs: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """Return the importance I, [batch, kv_heads, steps]."""
        return {"importance": importance(inputs)}

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return S = I, [batch, kv_heads, steps]."""
        return self.parts(inputs)["importance"]


IMPLEMENTATION = Attention
