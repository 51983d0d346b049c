"""Redundancy alone: R-KV with lambda 0."""

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, Scored
from kava.reasoning.evictions.rkv import redundancy


class Cosine(Eviction):
    """S = R."""

    def parts(self, scored: Scored) -> dict[str, Tensor]:
        """R alone."""
        return {"redundancy": redundancy(scored)}

    def score(self, scored: Scored) -> Tensor:
        """[B, H, C]."""
        return self.parts(scored)["redundancy"]


IMPLEMENTATION = Cosine
