"""Latent readout: each latent, read by the language-model head, names its reasoning token.

LOTUS (arXiv:2606.31779; spec, Methods), where latents come in blocks, one for each step. Without
blocks, and with the next token as the target: ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kava.reasoning.interface import ReasonerProtocol
from kava.reasoning.losses.cross_entropy import cross_entropy
from kava.shapes import Bool, Float, Int, Num


def slots(
    step_of: Int[Tensor, "batch steps"], num_latents: int, width: int | None
) -> tuple[Int[Tensor, "batch {num_latents}"], Bool[Tensor, "batch {num_latents}"]]:
    """Which reasoning token each latent stands for.

    Args:
        step_of: [B, C], the number of each reasoning token's step, -1 at pads.
        num_latents: M.
        width: c; token j of step i belongs to latent i * c + j, tokens from c on to none. If not
            given, token i of the whole trace belongs to latent i.

    Returns:
        columns [B, M] in 0 .. C - 1 (0 where there is none), and filled [B, M].
    """
    batch, length = step_of.shape
    column = torch.arange(length, device=step_of.device).expand(batch, length)
    slot = column if width is None else step_of * width + _place(step_of, column)
    outside = (step_of < 0) | (slot >= num_latents)
    if width is not None:
        outside |= _place(step_of, column) >= width
    # A last, spare slot takes whatever has no place.
    slot = slot.masked_fill(outside, num_latents)
    table = step_of.new_full((batch, num_latents + 1), -1).scatter(1, slot, column)
    columns = table[:, :num_latents]
    return columns.clamp(min=0), columns >= 0


def _place(
    step_of: Int[Tensor, "batch steps"], column: Int[Tensor, "batch steps"]
) -> Int[Tensor, "batch steps"]:
    """[B, C], the place of each token within its step."""
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
    """What the latents should name.

    Args:
        steps, step_of: [B, C].
        target: `own` token, or the `next` one of the trace (the last latent then has none).

    Returns:
        rows, latents and token ids, [N] each.
    """
    columns, filled = slots(step_of, num_latents, width)
    if target == "next":
        columns = columns + 1
        filled = filled & (columns < (step_of >= 0).sum(1, keepdim=True))
        columns = columns.masked_fill(~filled, 0)
    rows, latents = filled.nonzero(as_tuple=True)
    return rows, latents, steps[rows, columns[rows, latents]]


def latent_readout_loss(
    reasoner: ReasonerProtocol,
    hidden: Float[Tensor, "labels hidden"],
    ids: Int[Tensor, "labels"],
    count: Num[Tensor, ""],
) -> Float[Tensor, ""]:
    """Mean CE over supervised latents.

    Args:
        hidden: [N, d], their states.
        ids: [N].
        count: supervised latents of the whole batch (more than N where gradients accumulate).
    """
    return cross_entropy(reasoner, hidden, ids, count.clamp(min=1))
