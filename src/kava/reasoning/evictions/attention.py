"""Importance to the answer alone: R-KV with lambda 1."""

from __future__ import annotations

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.reasoning.evictions.rkv import importance
from kava.shapes import Float


class Attention(Eviction):
    """S = I."""

    needs_attention = True

    def parts(self, scored: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """I alone."""
        return {"importance": importance(scored)}

    def score(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """[B, H, C]."""
        return self.parts(scored)["importance"]


IMPLEMENTATION = Attention
