"""Latent readout: a cross-entropy loss that trains each latent to predict a reasoning token.

The language-model head reads the state of each latent, or the state before it (LOTUS,
arXiv:2606.31779; see docs/papers.md). In LOTUS, latents come in blocks, one block for each
reasoning step. Latents without blocks, and the next token as the target, are our additions.
"""

import torch
from torch import Tensor

from kava.reasoning.interface import ReasonerBase
from kava.reasoning.losses.cross_entropy import cross_entropy
from kava.shapes import Bool, Float, Int, Num


def slots(
    step_of: Int[Tensor, "batch steps"], num_latents: int, width: int | None
) -> tuple[Int[Tensor, "batch {num_latents}"], Bool[Tensor, "batch {num_latents}"]]:
    """Assign a reasoning token to each latent.

    Args:
        step_of: [batch, steps], the index of the reasoning step of each token, -1 at padding.
        num_latents: M, the number of latents.
        width: c, the number of latents of a reasoning step. Token j of step i is assigned to latent
            i * c + j, and tokens from c on are assigned to no latent. If None, token i of the whole
            chain of thought is assigned to latent i.

    Returns:
        columns: [batch, num_latents], the index of the token, 0 for a latent without a token.
        slot_mask: [batch, num_latents], true for each latent that has a token.
    """
    batch, length = step_of.shape
    column = torch.arange(length, device=step_of.device).expand(batch, length)
    slot = column if width is None else step_of * width + _index_in_step(step_of, column)
    outside = (step_of < 0) | (slot >= num_latents)
    if width is not None:
        outside |= _index_in_step(step_of, column) >= width
    # Tokens without a latent are scattered into one spare slot at the end, which is then cut off.
    slot = slot.masked_fill(outside, num_latents)
    table = step_of.new_full((batch, num_latents + 1), -1).scatter(1, slot, column)
    columns = table[:, :num_latents]
    return columns.clamp(min=0), columns >= 0


def _index_in_step(
    step_of: Int[Tensor, "batch steps"], column: Int[Tensor, "batch steps"]
) -> Int[Tensor, "batch steps"]:
    """Return the index of each token within its reasoning step, [batch, steps]."""
    first = torch.ones_like(step_of, dtype=torch.bool)
    first[:, 1:] = step_of[:, 1:] != step_of[:, :-1]
    return column - (column * first).cummax(dim=1).values if column.numel() else column


def readout_labels(
    steps: Int[Tensor, "batch steps"],
    step_of: Int[Tensor, "batch steps"],
    num_latents: int,
    width: int | None,
    target: str,
) -> tuple[Int[Tensor, "labels"], Int[Tensor, "labels"], Int[Tensor, "labels"]]:
    """Return the labels of the latents: which latent should predict which token.

    Args:
        steps: [batch, steps], token ids of the chain of thought.
        step_of: [batch, steps], the index of the reasoning step of each token, -1 at padding.
        num_latents: M, the number of latents.
        width: see `slots`.
        target: `own` or `slot` for the token assigned to the latent, or `next` for the token after
            it in the chain of thought (the last latent then has no label).

    Returns:
        rows, latents, ids: [labels] each; the example, the latent and the token id of each label.
    """
    columns, slot_mask = slots(step_of, num_latents, width)
    if target == "next":
        columns = columns + 1
        slot_mask = slot_mask & (columns < (step_of >= 0).sum(1, keepdim=True))
        columns = columns.masked_fill(~slot_mask, 0)
    rows, latents = slot_mask.nonzero(as_tuple=True)
    return rows, latents, steps[rows, columns[rows, latents]]


def latent_readout_loss(
    reasoner: ReasonerBase,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the supervised latents.

    Args:
        hidden: [labels, hidden], hidden states of the supervised latents.
        ids: [labels], token ids that these latents should predict.
        count: number of supervised latents in the whole batch; with gradient accumulation this is
            more than the number given here.
    """
    return cross_entropy(reasoner, hidden, ids, count.clamp(min=1))
