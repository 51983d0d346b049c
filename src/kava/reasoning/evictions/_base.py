"""The compressor: scores from one small file, everything else here.

Works on each layer and each key/value head on its own (KaVa, Listing 1; spec, Cache compression).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kava.shapes import Bool, Float, Int


@dataclass(frozen=True)
class EvictionInputs:
    """What a score may be computed from, for one layer.

    keys: [B, H, C, D].   mask: [B, C], true at real tokens.
    attention: [B, H, A, C], answer-to-reasoning (zero at pads), None if not asked for.
    answer_mask: [B, A], true at answer tokens.
    recent: how many of each row's last real tokens are kept whatever their score.

    While decoding there is no answer yet: the last `recent` tokens observe in its place, they are
    themselves among the keys, and their attention is zero at their own columns.
    """

    keys: Float[Tensor, "batch kv_heads steps head_dim"]
    mask: Bool[Tensor, "batch steps"]
    attention: Float[Tensor, "batch kv_heads answer steps"] | None
    answer_mask: Bool[Tensor, "batch answer"]
    recent: int = 0


@dataclass
class Eviction(ABC):
    """Base of every compressor. `lam` is R-KV's lambda; most ignore it."""

    lam: float = 0.1
    needs_attention = False

    @abstractmethod
    def score(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Scores [B, H, C], higher is kept. Pads and recent tokens are handled by the caller."""

    def parts(self, scored: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """What the score is made of, each [B, H, C] by name, for those who look inside.

        `importance`: I, high where the answer attends. `redundancy`: R as the eviction defines it.
        """
        return {}

    def check(self, longest: int, budget: int) -> None:  # noqa: B027
        """Raise a KavaError where this compressor cannot bring `longest` tokens to `budget`."""

    def keep(
        self, scored: EvictionInputs, budget: int
    ) -> tuple[
        Int[Tensor, "batch kv_heads {budget}"],
        Bool[Tensor, "batch kv_heads {budget}"],
    ]:
        """Choose the `budget` best columns of each row and head, in reading order.

        Returns:
            columns [B, H, budget] (0 in unfilled slots) and filled [B, H, budget]. A row with
            fewer real tokens than `budget` fills its first slots.
        """
        return select_top_k(self.score(scored), scored, budget)


def select_top_k(
    scores: Float[Tensor, "batch kv_heads steps"], scored: EvictionInputs, budget: int
) -> tuple[Int[Tensor, "batch kv_heads {budget}"], Bool[Tensor, "batch kv_heads {budget}"]]:
    """`Eviction.keep` by scores [B, H, C]."""
    columns = scored.keys.shape[2]
    real = scored.mask[:, None, :]
    scores = scores.float().masked_fill(~real, -torch.inf)
    scores = scores.masked_fill(_recent(scored)[:, None, :], torch.inf)
    # Stable: of equal scores (nothing outside of a sliding window is attended) the first wins.
    first = scores.argsort(dim=-1, descending=True, stable=True)[..., :budget]
    is_real = real.expand_as(scores).gather(-1, first)
    # A pad sorts behind every real token, so that filled slots come first.
    ordered = torch.where(is_real, first, columns).sort(dim=-1).values
    missing = budget - ordered.shape[-1]
    ordered = torch.nn.functional.pad(ordered, (0, max(missing, 0)), value=columns)
    filled = ordered < columns
    return ordered.masked_fill(~filled, 0), filled


def _recent(scored: EvictionInputs) -> Bool[Tensor, "batch steps"]:
    """[B, C], true at each row's last `recent` real tokens."""
    from_here_on = scored.mask.flip(1).cumsum(1).flip(1)
    return scored.mask & (from_here_on <= scored.recent)


def gather(
    states: Float[Tensor, "batch kv_heads steps head_dim"],
    columns: Int[Tensor, "batch kv_heads latents"],
) -> Float[Tensor, "batch kv_heads latents head_dim"]:
    """Columns [B, H, M] of states [B, H, C, D], as [B, H, M, D]; zeros if C is 0."""
    if states.shape[2] == 0:
        return states.new_zeros(*columns.shape, states.shape[-1])
    index = columns[..., None].expand(*columns.shape, states.shape[-1])
    return states.gather(2, index)
