"""Keep the first tokens, cut off the rest."""

import torch
from torch import Tensor

from kava.reasoning.evictions._base import Eviction, Scored


class CropRight(Eviction):
    """S falls with the position."""

    def score(self, scored: Scored) -> Tensor:
        """[B, H, C]."""
        batch, heads, columns, _ = scored.keys.shape
        falling = -torch.arange(columns, device=scored.keys.device, dtype=torch.float32)
        return falling.expand(batch, heads, columns)


IMPLEMENTATION = CropRight
