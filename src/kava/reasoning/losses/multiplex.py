"""Multiplexed tokens: a loss that trains each latent to predict a span of the chain of thought.

The tokens of the chain of thought are cut into as many spans as there are latents. The target of
latent i is a mixture of the tokens of span i, with weights that fall with the position in the span
(MUX, arXiv:2607.18264):

    q_i = sum_j w_j onehot(t_j) / sum_j w_j,   w_j = decay^j
    L   = mean over i of KL(q_i || softmax(W x_i / tau))

See docs/papers.md, MUX.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kava.reasoning.interface import ReasonerBase
from kava.shapes import Bool, Float, Int, Num


@dataclass(frozen=True)
class Spans:
    """Spans of all examples of a batch, and the tokens in them.

    rows, latents: [spans], the example of each span and the latent that should predict it.
    span_of: [tokens], the index of each token's span.
    ids: [tokens], token ids.
    weights: [tokens], weight of each token in the target; those of a span sum to 1.
    """

    rows: Int[Tensor, "spans"]
    latents: Int[Tensor, "spans"]
    span_of: Int[Tensor, "tokens"]
    ids: Int[Tensor, "tokens"]
    weights: Float[Tensor, "tokens"]


def random_cuts(
    lengths: Int[Tensor, "batch"], num_spans: int, uniform: Callable[[], Float[Tensor, "batch"]]
) -> Bool[Tensor, "batch cuts"]:
    """Draw where each chain of thought is cut, uniformly among all ways to cut it.

    Args:
        lengths: [batch], number of tokens of each chain of thought.
        num_spans: number of spans; a chain of thought with fewer tokens has a span for each token.
        uniform: returns a random number between 0 and 1 for each example, anew in each call.

    Returns:
        [batch, cuts], true at c if the chain of thought is cut between its tokens c and c + 1.
    """
    gaps = (lengths - 1).clamp(min=0)
    cuts = gaps.clamp(max=max(num_spans - 1, 0))
    chosen = torch.zeros(len(lengths), int(gaps.max()) + 1, dtype=torch.bool)
    # Floyd's algorithm: draw `cuts` of `gaps` places without replacement, one per round.
    for i in range(int(cuts.max())):
        last = (gaps - cuts + i)[:, None]
        place = (uniform()[:, None] * (last + 1)).long()
        place = torch.where(chosen.gather(1, place), last, place)
        chosen.scatter_(1, place, chosen.gather(1, place) | (i < cuts)[:, None])
    return chosen[:, :-1]


def cut_into_spans(
    steps: Int[Tensor, "batch steps"],
    mask: Bool[Tensor, "batch steps"],
    cuts: Bool[Tensor, "batch cuts"],
    decay: float,
) -> Spans:
    """Return the spans of each chain of thought, one for each latent from the first on.

    Args:
        steps: [batch, steps], token ids of the chain of thought.
        mask: [batch, steps], true at real tokens.
        cuts: see `random_cuts`.
        decay: the weight of a token relative to the token before it in its span.
    """
    starts = torch.zeros_like(mask)
    width = min(cuts.shape[1], mask.shape[1] - 1) if mask.shape[1] else 0
    starts[:, :1] = True
    starts[:, 1 : 1 + width] = cuts[:, :width].to(mask.device)
    starts &= mask
    column = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    begins = (column * starts).cummax(dim=1).values if mask.shape[1] else column
    rows, latents = starts.nonzero(as_tuple=True)[0], (starts.cumsum(1) - 1)[starts]
    span_of = (starts.flatten().cumsum(0) - 1).view_as(column)[mask]
    weights = decay ** (column - begins)[mask].float()
    total = weights.new_zeros(len(rows)).index_add(0, span_of, weights)
    return Spans(rows, latents, span_of, steps[mask], weights / total[span_of])


def multiplex_loss(
    reasoner: ReasonerBase,
    hidden: Float[Tensor, "spans hidden"],
    spans: Spans,
    tau: float,
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the sum of KL(q_i || softmax(W x_i / tau)) over all spans, divided by `count`.

    Args:
        hidden: [spans, hidden], the states x_i that the head W reads.
        spans: their targets.
        tau: temperature.
        count: number of spans in the whole batch; with gradient accumulation this is more than the
            number given here.
    """
    predicted = (reasoner.logits(hidden).float() / tau).log_softmax(-1)
    cross = -(spans.weights * predicted[spans.span_of, spans.ids]).sum()
    # A token may occur twice in a span: its weights are one entry of q. Equal entries are found by
    # sorting, which unlike `unique` does not wait for a GPU.
    entries, order = (spans.span_of * predicted.shape[-1] + spans.ids).sort()
    weights = spans.weights[order]
    entry = torch.zeros_like(entries)
    entry[1:] = (entries[1:] != entries[:-1]).cumsum(0)
    q = torch.zeros_like(weights).index_add(0, entry, weights)
    # The entropy of q has no gradient. It is subtracted so that the logged value is the KL
    # divergence, which is 0 for a perfect prediction.
    return (cross + (weights * q[entry].log()).sum()) / count.clamp(min=1)
