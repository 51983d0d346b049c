"""Redundancy alone: R-KV with lambda 0."""

from torch import Tensor

from kava.evictions._base import Eviction, Scored
from kava.evictions.rkv import redundancy


class Cosine(Eviction):
    """S = R."""

    def score(self, scored: Scored) -> Tensor:
        """[B, H, C]."""
        return redundancy(scored)


IMPLEMENTATION = Cosine
