"""Eviction by position: keep the last tokens of the chain of thought and drop the rest."""

from torch import Tensor

from kava.reasoning.evictions._base import EvictionInputs
from kava.reasoning.evictions.crop_right import CropRight
from kava.shapes import Float


class CropLeft(CropRight):
    """Keep the last tokens: S increases with the position."""

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return S = position, [batch, kv_heads, steps]."""
        return -super().score(inputs)


IMPLEMENTATION = CropLeft
