"""Eviction by cosine similarity: redundancy among keys only, which is R-KV with lambda 0."""

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.reasoning.evictions.rkv import redundancy
from kava.shapes import Float


class Cosine(Eviction):
    """Keep the tokens whose keys are least similar to the other keys: S = R."""

    def parts(self, inputs: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """Return the redundancy term R of KaVa, [batch, kv_heads, steps]; high at unlike keys."""
        return {"redundancy": redundancy(inputs)}

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return S = R, [batch, kv_heads, steps]."""
        return self.parts(inputs)["redundancy"]


IMPLEMENTATION = Cosine
