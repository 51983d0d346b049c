"""Eviction by position: keep the first tokens of the chain of thought and drop the rest."""

import torch
from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


class CropRight(Eviction):
    """Keep the first tokens: S decreases with the position."""

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return S = -position, [batch, kv_heads, steps]."""
        batch, heads, columns, _ = inputs.keys.shape
        falling = -torch.arange(columns, device=inputs.keys.device, dtype=torch.float32)
        return falling.expand(batch, heads, columns)


IMPLEMENTATION = CropRight
