"""Importance to the answer alone: R-KV with lambda 1."""

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, Scored
from kava.reasoning.evictions.rkv import importance


class Attention(Eviction):
    """S = I."""

    needs_attention = True

    def parts(self, scored: Scored) -> dict[str, Tensor]:
        """I alone."""
        return {"importance": importance(scored)}

    def score(self, scored: Scored) -> Tensor:
        """[B, H, C]."""
        return self.parts(scored)["importance"]


IMPLEMENTATION = Attention
