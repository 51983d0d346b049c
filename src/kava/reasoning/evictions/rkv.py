"""R-KV as KaVa uses it: importance to the answer and redundancy among keys (KaVa, Listing 1)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from kava.backbones.attention import masked_softmax
from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


def importance(scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
    """I = mean of A over the answer tokens, [B, H, C]."""
    attention = cast(Tensor, scored.attention)  # there for all with `needs_attention`
    weight = scored.answer_mask[:, None, :, None].to(attention.dtype)
    count = weight.sum(2).clamp(min=1)
    return (attention * weight).sum(2) / count


def redundancy(scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
    """R = softmax over C of (- sum_j c_ij / N_C), [B, H, C]: high where a key is unlike others.

    c is the cosine similarity of keys with diagonal and pads 0. Its row sums need no C x C
    matrix: sum_j c_ij = k_i . (sum_j k_j) - k_i . k_i for unit keys.
    """
    real = scored.mask[:, None, :, None]
    unit = torch.nn.functional.normalize(scored.keys.float(), dim=-1) * real
    total = unit.sum(2, keepdim=True)
    similarity = (unit * total).sum(-1) - (unit * unit).sum(-1)
    count = scored.mask.sum(1).clamp(min=1)[:, None, None]
    return masked_softmax(-similarity / count, scored.mask[:, None, :])


class RKV(Eviction):
    """S = lambda I + (1 - lambda) R."""

    needs_attention = True

    def parts(self, scored: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """I and R."""
        return {"importance": importance(scored), "redundancy": redundancy(scored)}

    def score(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """[B, H, C]."""
        parts = self.parts(scored)
        return self.lam * parts["importance"] + (1 - self.lam) * parts["redundancy"]


IMPLEMENTATION = RKV
