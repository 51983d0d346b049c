"""CE: mean over label tokens of the batch (spec, Loss), without all logits at once.

A vocabulary of 128,256 makes a label's logits, probabilities and gradient 1.3 MB. Where the head is
frozen they are computed for some labels at a time, and the gradient for the states with them, which
is all that is kept for the backward pass. No product is made twice (ours; fused linear
cross-entropy does the same in one kernel). A head that is trained gets all labels at once: its own
gradient would have to be kept for each loss, which takes more than it saves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kava.reasoning.interface import ReasonerProtocol
from kava.shapes import Float, Int, Num

#: At most so many: those of 523 labels of Llama-3, whose product fills a GPU.
LOGITS_AT_ONCE = 2**26


def cross_entropy(
    reasoner: ReasonerProtocol,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    """Sum over labels divided by `count`.

    Args:
        hidden: [N, d], the last layer's states, at label positions only.
        ids: [N].
        count: label tokens of the whole batch (more than N where gradients are accumulated).
    """
    labels = labels_at_once(reasoner.lm)
    if labels is None or len(ids) <= labels:
        return _all_at_once(reasoner, hidden, ids, count)
    if torch.is_grad_enabled():
        return _InParts.apply(reasoner, labels, hidden, ids, count)
    return _in_parts(reasoner, labels, hidden, ids, count)[0]


def labels_at_once(model: Any) -> int | None:
    """Labels whose logits are in memory together; None: all."""
    head = model.get_output_embeddings()
    if any(weight.requires_grad for weight in head.parameters()):
        return None
    return max(1, LOGITS_AT_ONCE // head.weight.shape[0])


def _all_at_once(
    reasoner: ReasonerProtocol,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    return F.cross_entropy(reasoner.logits(hidden).float(), ids, reduction="sum") / count


def _in_parts(
    reasoner: ReasonerProtocol,
    labels: int,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, "labels hidden"] | None]:
    """The loss, and its gradient [N, d] where gradients are on."""
    losses, gradients = [], []
    for part, named in zip(hidden.detach().split(labels), ids.split(labels), strict=True):
        states = part.requires_grad_(torch.is_grad_enabled())
        # A view, since hooks that wait for gradients of a module's inputs take no leaf here.
        loss = _all_at_once(reasoner, states.view_as(states), named, count)
        losses.append(loss.detach())
        if loss.requires_grad:
            gradients += torch.autograd.grad(loss, states)
    return torch.stack(losses).sum(), torch.cat(gradients) if gradients else None


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Float[Tensor, ""]:
        with torch.enable_grad():
            loss, gradient = _in_parts(*given)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] torch's decorator hides it
        ctx: Any, upstream: Float[Tensor, ""]
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, None, upstream * gradient, None, None
