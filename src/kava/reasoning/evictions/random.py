"""Random eviction, a baseline; scores are drawn from torch's generator, so a seed fixes them."""

import torch
from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


class Random(Eviction):
    """Keep random tokens: S is uniform noise, drawn anew in every call, layer and head."""

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return S, drawn uniformly from [0, 1), [batch, kv_heads, steps]."""
        return torch.rand(inputs.keys.shape[:3], device=inputs.keys.device)


IMPLEMENTATION = Random
