"""L_KV: the latents' keys and values against the compressed teacher cache."""

from __future__ import annotations

import torch
from torch import Tensor

from kava.reasoning.losses.distance import distance, masked_std
from kava.shapes import Bool, Float, Int, Num

#: Keys and values of one layer.
Pair = tuple[
    Float[Tensor, "batch kv_heads latents head_dim"],
    Float[Tensor, "batch kv_heads latents head_dim"],
]


def kv_cache_loss(
    student: list[Pair],
    teacher: list[Pair],
    filled: list[Bool[Tensor, "batch kv_heads latents"]],
    kind: str,
    layerwise_std: bool,
    count: Num[Tensor, ""],
    reduction: str = "mean",
) -> Float[Tensor, ""]:
    """1/2 ( mean |sg(K~) - K_s| + mean |sg(V~) - V_s| ), each divided by std (spec, Loss).

    The mean is over filled slots, heads, head size and layers.

    Args:
        student, teacher: one pair of [B, H, M, D] per layer. No gradient flows into `teacher`.
        filled: one [B, H, M] per layer, true where the teacher has a token; as many in each head.
        kind: `l1 | smooth_l1 | mse`.
        layerwise_std: divide by each layer's own teacher std, else by one std over all layers;
            keys and values each have their own.
        count: `denominator` over the whole batch (more than this micro-batch's where gradients
            are accumulated).
        reduction: `mean`; `row`, the mean over rows of each row's mean; `sum` over heads, head
            size and layers, mean over filled slots.
    """
    mask, count = torch.stack(filled)[..., None], count.clamp(min=1)
    terms = [
        _term(
            student,
            teacher,
            part,
            mask,
            kind=kind,
            layerwise_std=layerwise_std,
            reduction=reduction,
            count=count,
        )
        for part in (0, 1)
    ]
    return (terms[0] + terms[1]) / 2


def denominator(slots: Int[Tensor, "batch"], reduction: str) -> Int[Tensor, ""]:
    """What `reduction` divides by: filled slots, or rows that have any. `slots` is [B]."""
    return (slots > 0).sum() if reduction == "row" else slots.sum()


def _term(
    student: list[Pair],
    teacher: list[Pair],
    part: int,
    mask: Bool[Tensor, "layers batch kv_heads latents 1"],
    *,
    kind: str,
    layerwise_std: bool,
    reduction: str,
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    ours = torch.stack([pair[part] for pair in student])
    theirs = torch.stack([pair[part] for pair in teacher]).detach().float()
    dims = (1, 2, 3, 4) if layerwise_std else (0, 1, 2, 3, 4)
    layers, _, heads, _, size = theirs.shape
    error = distance(kind, ours, theirs) / masked_std(theirs, mask, dims) * mask
    if reduction == "sum":
        return error.sum() / count
    if reduction == "row":
        slots = mask[0, :, 0].sum(dim=(1, 2)).clamp(min=1)[:, None, None, None]
        error = error / slots
    return error.sum() / (count * layers * heads * size)
