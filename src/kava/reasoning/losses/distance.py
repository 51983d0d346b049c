"""Elementwise distances for the distillation losses, and the standard deviation they divide by."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kava.shapes import Bool, Float
from kava.system.distributed import sum_over_micro_batch


def distance(
    kind: str, student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the elementwise distance of two tensors, in fp32 and in the shape of the inputs.

    Args:
        kind: `l1`, `smooth_l1` (with beta 1) or `mse`.
        student, teacher: tensors of the same shape.
    """
    loss = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}[kind]
    return loss(student.float(), teacher.float(), reduction="none")


def masked_std(
    values: Float[Tensor, "..."], mask: Bool[Tensor, "..."], dims: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """Return the standard deviation of the unmasked values over `dims`.

    The result is meant to be divided by. It is therefore at least 1e-6, and 1 where all values are
    equal, which happens when only zeros are compared (`short_traces: zeros` with a micro-batch of
    empty chains of thought). If several ranks hold parts of the micro-batch, the statistics cover
    all of its examples; no gradient flows into `values` in that case.

    Args:
        values: tensor of any shape.
        mask: true at the values to include; broadcastable to `values`.
        dims: dimensions to reduce.

    Returns:
        The standard deviation, with n - 1 in the denominator; the reduced dimensions have size 1.
    """
    values = values.float()
    weight = mask.expand_as(values).to(values.dtype)
    sums = [part.sum(dims, keepdim=True) for part in (weight, values * weight)]
    count, total = sum_over_micro_batch(torch.stack(sums))
    mean = total / count.clamp(min=1)
    # A second pass over the values, because E[x^2] - E[x]^2 cancels if the mean is large.
    square = sum_over_micro_batch(((values - mean).square() * weight).sum(dims, keepdim=True))
    std = torch.sqrt(square / (count - 1).clamp(min=1)).clamp(min=1e-6)
    return std.masked_fill(square == 0, 1)
