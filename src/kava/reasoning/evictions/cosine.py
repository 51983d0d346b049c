"""Redundancy alone: R-KV with lambda 0."""

from __future__ import annotations

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.reasoning.evictions.rkv import redundancy
from kava.shapes import Float


class Cosine(Eviction):
    """S = R."""

    def parts(self, scored: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """R alone."""
        return {"redundancy": redundancy(scored)}

    def score(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """[B, H, C]."""
        return self.parts(scored)["redundancy"]


IMPLEMENTATION = Cosine
