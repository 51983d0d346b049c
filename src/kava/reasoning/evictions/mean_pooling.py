"""Compression by mean pooling: each slot is the mean of a span of tokens (ours, a baseline)."""

import torch
from torch import Tensor

from kava.reasoning.evictions.evenly_spaced import EvenlySpaced
from kava.shapes import Bool, Float, Int


class MeanPooling(EvenlySpaced):
    """Cut the chain of thought into as many equal spans as there are slots and average each.

    Keys are averaged as they are compared. After the rotary embedding, keys of different positions
    partly cancel out; `kv.keys: pre_rope` avoids that.
    """

    merges = True

    def gather(
        self,
        states: Float[Tensor, "batch kv_heads steps head_dim"],
        columns: Int[Tensor, "batch kv_heads latents"],
        slot_mask: Bool[Tensor, "batch kv_heads latents"],
        mask: Bool[Tensor, "batch steps"],
    ) -> Float[Tensor, "batch kv_heads latents head_dim"]:
        """Return the mean of each span, [batch, kv_heads, latents, head_dim]; see `Eviction`."""
        batch, heads, steps, _ = states.shape
        if steps == 0:
            return super().gather(states, columns, slot_mask, mask)
        # A token belongs to the last span that begins at it or before it.
        begins = states.new_zeros(batch, heads, steps, dtype=torch.long)
        begins.scatter_add_(2, columns, slot_mask.long())
        span = begins.cumsum(2) - 1
        slots = torch.arange(columns.shape[2], device=columns.device)
        members = (span[:, :, None] == slots[:, None]) & mask[:, None, None]
        members = members & slot_mask[..., None]
        weights = members.to(states.dtype)
        return weights @ states / weights.sum(-1, keepdim=True).clamp(min=1)


IMPLEMENTATION = MeanPooling
