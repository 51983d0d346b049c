"""The distances a distillation loss may use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kava.shapes import Bool, Float
from kava.system.distributed import sum_over_micro_batch


def distance(
    kind: str, student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Elementwise distance: `l1`, `smooth_l1` (beta 1) or `mse`. Same shape as the inputs."""
    loss = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}[kind]
    return loss(student.float(), teacher.float(), reduction="none")


def masked_std(
    values: Float[Tensor, ...], mask: Bool[Tensor, ...], dims: tuple[int, ...]
) -> Float[Tensor, ...]:
    """Standard deviation (n - 1) of unmasked values over `dims`, those kept with size 1.

    `mask` is broadcastable to `values`. To be divided by: at least 1e-6, and 1 where all values are
    the same, as when nothing but zeros is compared (`short_traces: zeros`, a micro-batch of empty
    traces). Over all rows of the micro-batch, also where several processes hold parts of it;
    `values` gets no gradient then.
    """
    values = values.float()
    weight = mask.expand_as(values).to(values.dtype)
    sums = [part.sum(dims, keepdim=True) for part in (weight, values * weight)]
    count, total = sum_over_micro_batch(torch.stack(sums))
    mean = total / count.clamp(min=1)
    square = sum_over_micro_batch(((values - mean).square() * weight).sum(dims, keepdim=True))
    std = torch.sqrt(square / (count - 1).clamp(min=1)).clamp(min=1e-6)
    return std.masked_fill(square == 0, 1)
