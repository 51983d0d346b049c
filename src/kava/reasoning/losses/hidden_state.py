"""L_CODI: the student's states at the end of the answer prompt against the teacher's."""

from __future__ import annotations

from torch import Tensor

from kava.reasoning.losses.distance import distance, masked_std
from kava.shapes import Float, Num


def hidden_state_loss(
    student: Float[Tensor, "layers batch hidden"],
    teacher: Float[Tensor, "layers batch hidden"],
    kind: str,
    layerwise_std: bool,
    rows: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    """Mean over layers, rows and features of |sg(h_teacher) - h_student| / std (spec, Loss).

    Args:
        student, teacher: [L, B, d], the states at the ":" of "The answer is:". No gradient flows
            into `teacher`.
        kind: `l1 | smooth_l1 | mse`.
        layerwise_std: divide by each layer's own teacher std, else by one std over all layers.
        rows: number of rows of the whole batch (more than B where gradients are accumulated).
    """
    teacher = teacher.detach().float()
    everything = teacher.new_ones(1).bool()
    std = masked_std(teacher, everything, (1, 2) if layerwise_std else (0, 1, 2))
    per_layer = (distance(kind, student, teacher) / std).mean(dim=(0, 2))
    return per_layer.sum() / rows
