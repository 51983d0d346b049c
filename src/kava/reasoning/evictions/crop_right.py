"""Keep the first tokens, cut off the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


class CropRight(Eviction):
    """S falls with the position."""

    def score(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """[B, H, C]."""
        batch, heads, columns, _ = scored.keys.shape
        falling = -torch.arange(columns, device=scored.keys.device, dtype=torch.float32)
        return falling.expand(batch, heads, columns)


IMPLEMENTATION = CropRight
