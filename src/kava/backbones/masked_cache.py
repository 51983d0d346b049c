"""`MaskedCache`: a KV cache with its mask, from which a forward pass or an answer continues.

The result of the reasoning reaches the answer only through it, in training and in inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from kava.backbones import cache
from kava.shapes import Bool, Int


@dataclass(frozen=True)
class MaskedCache:
    """A KV cache and its mask, from which an answer can be generated.

    Args:
        past_key_values: for each layer, keys and values [batch, kv_heads, columns, head_dim].
        attention_mask: [batch, columns], true at real columns; holes are allowed.
    """

    past_key_values: DynamicCache
    attention_mask: Bool[Tensor, "batch columns"]

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> MaskedCache:
        """Return an empty cache, without columns."""
        return cls(DynamicCache(), torch.zeros(batch, 0, dtype=torch.bool, device=device))

    @property
    def next_position(self) -> Int[Tensor, "batch"]:
        """Position of the next token, [batch], which is the number of real columns."""
        return self.attention_mask.sum(1)

    @property
    def columns(self) -> int:
        """Number of columns, including holes."""
        return self.attention_mask.shape[1]

    def crop(self, columns: int) -> MaskedCache:
        """Return a cache of the first `columns` columns, which shares the tensors."""
        return MaskedCache(
            cache.crop(self.past_key_values, columns), self.attention_mask[:, :columns]
        )

    def pack(self) -> MaskedCache:
        """Return the cache without holes, with as little padding as possible, on the left."""
        if self.columns == 0:
            return self
        columns = int(self.attention_mask.sum(1).max())
        order = self.attention_mask.long().argsort(dim=1, stable=True)[:, self.columns - columns :]
        mask = self.attention_mask.gather(1, order)
        return MaskedCache(cache.gather(self.past_key_values, order), mask)
