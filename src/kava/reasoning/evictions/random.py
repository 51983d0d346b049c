"""Keep tokens at random, for comparison. Drawn from torch's generator, so a seed fixes it."""

from __future__ import annotations

import torch
from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


class Random(Eviction):
    """S is uniform noise, fresh in every call, layer and head."""

    def score(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """[B, H, C]."""
        return torch.rand(scored.keys.shape[:3], device=scored.keys.device)


IMPLEMENTATION = Random
