"""L_CODI: distillation of the teacher's hidden states at the end of the answer prompt."""

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
    """Return L_CODI, the mean distance of student and teacher states, divided by their std.

    Computes the mean of |sg(h_teacher) - h_student| / std over layers, examples and features
    (CODI, arXiv:2502.21074, equation 5; KaVa, arXiv:2510.02312; see docs/papers.md, Loss).

    Args:
        student, teacher: [layers, batch, hidden], hidden states at the last token before the
            answer. No gradient flows into `teacher`.
        kind: distance, `l1`, `smooth_l1` or `mse`.
        layerwise_std: divide each layer by the teacher's standard deviation in that layer; if
            false, divide by one standard deviation over all layers.
        rows: number of examples in the whole batch; with gradient accumulation this is more than
            `batch`.
    """
    teacher = teacher.detach().float()
    everything = teacher.new_ones(1).bool()
    # The paper does not say of what the standard deviation is taken. Here it is that of the
    # teacher, which has no gradient: the student cannot lower the loss by increasing its own.
    std = masked_std(teacher, everything, (1, 2) if layerwise_std else (0, 1, 2))
    per_layer = (distance(kind, student, teacher) / std).mean(dim=(0, 2))
    return per_layer.sum() / rows
