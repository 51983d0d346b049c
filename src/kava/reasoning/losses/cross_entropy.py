"""Cross-entropy (CE) over the label tokens of a batch, computed in chunks of labels.

See docs/papers.md, Loss. With a vocabulary of 128,256 tokens, the logits, probabilities and
gradient of one label take 1.3 MB. If the language-model head is frozen, the loss is therefore
computed for a chunk of labels at a time, together with its gradient with respect to the hidden
states. Only that gradient is kept for the backward pass, and no matrix product is computed twice.
This chunking is our addition; fused linear cross-entropy does the same in one kernel. If the head
is trained, all labels are computed at once: keeping the gradient of the head for each loss would
take more memory than chunking saves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kava.reasoning.interface import ReasonerBase
from kava.shapes import Float, Int, Num

#: Maximum number of logits in memory at once: for Llama-3 the logits of 523 labels, which is enough
#: for one matrix product to keep a GPU busy.
LOGITS_AT_ONCE = 2**26


def cross_entropy(
    reasoner: ReasonerBase,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the cross-entropy summed over the given labels and divided by `count`.

    Args:
        hidden: [labels, hidden], hidden states of the last layer, at label positions only.
        ids: [labels], token ids of the labels.
        count: number of label tokens in the whole batch; with gradient accumulation this is more
            than the number of labels given here.
    """
    labels = labels_at_once(reasoner.lm)
    if labels is None or len(ids) <= labels:
        return _all_at_once(reasoner, hidden, ids, count)
    if torch.is_grad_enabled():
        return _InChunks.apply(reasoner, labels, hidden, ids, count)
    return _in_chunks(reasoner, labels, hidden, ids, count)[0]


def labels_at_once(model: Any) -> int | None:
    """Return how many labels to compute logits for at a time, or None for all at once.

    The result is None if the language-model head is trained.
    """
    head = model.get_output_embeddings()
    if any(weight.requires_grad for weight in head.parameters()):
        return None
    return max(1, LOGITS_AT_ONCE // head.weight.shape[0])


def _all_at_once(
    reasoner: ReasonerBase,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the loss computed from the logits of all given labels at once, in fp32."""
    return F.cross_entropy(reasoner.logits(hidden).float(), ids, reduction="sum") / count


def _in_chunks(
    reasoner: ReasonerBase,
    labels: int,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, "labels hidden"] | None]:
    """Return the loss and, if gradients are enabled, its gradient [labels, hidden], else None."""
    losses, gradients = [], []
    for part, named in zip(hidden.detach().split(labels), ids.split(labels), strict=True):
        states = part.requires_grad_(torch.is_grad_enabled())
        # Pass a view: hooks on the gradients of a module's inputs do not accept a leaf tensor here.
        loss = _all_at_once(reasoner, states.view_as(states), named, count)
        losses.append(loss.detach())
        if loss.requires_grad:
            gradients += torch.autograd.grad(loss, states)
    return torch.stack(losses).sum(), torch.cat(gradients) if gradients else None


class _InChunks(torch.autograd.Function):
    """Cross-entropy in chunks, whose gradient is computed in the forward pass and saved."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Float[Tensor, ""]:
        with torch.enable_grad():
            loss, gradient = _in_chunks(*given)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] torch's decorator hides it
        ctx: Any, upstream: Float[Tensor, ""]
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, None, upstream * gradient, None, None
