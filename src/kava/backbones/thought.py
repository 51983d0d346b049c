"""The only thing that carries the result of thinking, in training and at inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from kava.backbones import cache
from kava.shapes import Bool, Int


@dataclass(frozen=True)
class Thought:
    """A cache that an answer can continue from.

    past_key_values: one (keys, values) pair of [B, H, S, D] per layer.
    attention_mask: [B, S], true at real columns (holes are allowed).
    """

    past_key_values: DynamicCache
    attention_mask: Bool[Tensor, "batch columns"]

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Thought:
        """Nothing thought yet: S = 0."""
        return cls(cache.empty(), torch.zeros(batch, 0, dtype=torch.bool, device=device))

    @property
    def next_position(self) -> Int[Tensor, "batch"]:
        """[B], the position of the next token: the number of real columns."""
        return self.attention_mask.sum(1)

    @property
    def columns(self) -> int:
        """S."""
        return self.attention_mask.shape[1]

    def crop(self, columns: int) -> Thought:
        """The first `columns` columns; shares the tensors."""
        return Thought(cache.crop(self.past_key_values, columns), self.attention_mask[:, :columns])

    def pack(self) -> Thought:
        """The same thought without holes: pads on the left, as few as there can be."""
        if self.columns == 0:
            return self
        columns = int(self.attention_mask.sum(1).max())
        order = self.attention_mask.long().argsort(dim=1, stable=True)[:, self.columns - columns :]
        mask = self.attention_mask.gather(1, order)
        return Thought(cache.gather(self.past_key_values, order), mask)
