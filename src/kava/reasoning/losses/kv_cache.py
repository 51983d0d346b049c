"""L_KV: distillation of the teacher's compressed KV cache into the keys and values of latents."""

import torch
from torch import Tensor

from kava.reasoning.losses.distance import distance, masked_std
from kava.shapes import Bool, Float, Int, Num

#: The keys and the values of one layer.
Pair = tuple[
    Float[Tensor, "batch kv_heads latents head_dim"],
    Float[Tensor, "batch kv_heads latents head_dim"],
]


def kv_cache_loss(
    student: list[Pair],
    teacher: list[Pair],
    slot_mask: list[Bool[Tensor, "batch kv_heads latents"]],
    kind: str,
    layerwise_std: bool,
    count: Num[Tensor, ""],
    reduction: str = "mean",
) -> Float[Tensor, ""]:
    """Return L_KV, the mean distance of the latents' keys and values to the teacher's.

    Computes 1/2 ( mean |sg(K~) - K_s| + mean |sg(V~) - V_s| ), each term divided by its standard
    deviation (KaVa, arXiv:2510.02312; see docs/papers.md, Loss). The mean is over filled slots,
    key/value heads, head size and layers.

    Args:
        student, teacher: for each layer, a pair of keys and values
            [batch, kv_heads, latents, head_dim]. No gradient flows into `teacher`.
        slot_mask: for each layer, [batch, kv_heads, latents], true where the teacher kept a token.
            Each head has the same number of filled slots.
        kind: distance, `l1`, `smooth_l1` or `mse`.
        layerwise_std: divide each layer by the teacher's standard deviation in that layer; if
            false, divide by one standard deviation over all layers. Keys and values have separate
            standard deviations.
        count: the `denominator` of the whole batch; with gradient accumulation this is more than
            that of this micro-batch.
        reduction: `mean` as above; `row` for the mean over examples of the mean of each example;
            `sum` for the sum over heads, head size and layers, averaged over filled slots.
    """
    mask, count = torch.stack(slot_mask)[..., None], count.clamp(min=1)

    def term(part: int) -> Tensor:
        """Return the term for the keys (`part` 0) or for the values (`part` 1)."""
        student_states = torch.stack([pair[part] for pair in student])
        teacher_states = torch.stack([pair[part] for pair in teacher]).detach().float()
        layers, _, heads, _, size = teacher_states.shape
        std = masked_std(teacher_states, mask, (1, 2, 3, 4) if layerwise_std else (0, 1, 2, 3, 4))
        error = distance(kind, student_states, teacher_states) / std * mask
        if reduction == "sum":
            return error.sum() / count
        if reduction == "row":
            # Layer 0 and head 0 stand for all: each head has the same number of filled slots.
            slots = mask[0, :, 0].sum(dim=(1, 2)).clamp(min=1)[:, None, None, None]
            error = error / slots
        # The paper leaves the normalization open. A mean does not grow with M, layers or heads.
        return error.sum() / (count * layers * heads * size)

    return (term(0) + term(1)) / 2


def denominator(slots: Int[Tensor, "batch"], reduction: str) -> Int[Tensor, ""]:
    """Return what `reduction` divides by: the filled slots, or the examples that have any.

    Args:
        slots: [batch], number of filled slots of each example.
        reduction: `row` counts examples; `mean` and `sum` count filled slots.
    """
    return (slots > 0).sum() if reduction == "row" else slots.sum()
