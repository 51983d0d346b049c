"""Masks and positions of a cache with holes: made here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Sliding windows of a backbone's layers (`kava.backbones.structure.windows`).
Windows = int | dict[str, int | None] | None


def pad(sequences: Sequence[Sequence[int]], side: str, value: int = 0) -> tuple[Tensor, Tensor]:
    """Pad to the longest. Returns ids [B, S] and a boolean mask [B, S], true at real tokens."""
    width = max((len(s) for s in sequences), default=0)
    ids = torch.full((len(sequences), width), value, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for i, sequence in enumerate(sequences):
        at = slice(width - len(sequence), None) if side == "left" else slice(0, len(sequence))
        ids[i, at] = torch.tensor(sequence, dtype=torch.long)
        mask[i, at] = True
    return ids, mask


def positions(past: Tensor, mask: Tensor) -> Tensor:
    """Positions [B, n] of new columns after a past [B, S]: the count of real columns before each.

    A pad gets the position of the nearest real column (its state is never read).
    """
    return (past.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(past: Tensor, mask: Tensor, window: int | None = None) -> Tensor:
    """Boolean attention mask [B, 1, n, S + n] of n new columns after a past of S.

    A column sees the real columns before it and itself. A pad sees itself too, so that no row of
    the softmax is empty on any attention kernel; nothing ever sees a pad.

    Args:
        window: of a sliding window, in positions: itself and the `window` - 1 real columns before.
    """
    n = mask.shape[1]
    own = torch.eye(n, dtype=torch.bool, device=mask.device)
    inside = (own.new_ones(n, n).tril() & mask[:, None, :]) | own
    seen = torch.cat((past[:, None, :].expand(-1, n, -1), inside), dim=2)
    if window is not None:
        seen = seen & within_window(positions(past, mask), both_positions(past, mask), window)
    return seen[:, None]


def within_window(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Whether a key lies less than `window` positions before a query: [B, n], [B, m] to [B, n, m].

    Positions count real columns only, so pads and holes take no room in the window.
    """
    return queries[:, :, None] - keys[:, None, :] < window


def both_positions(past: Tensor, mask: Tensor) -> Tensor:
    """Positions [B, S + n] of a past and of the new columns after it."""
    return torch.cat((positions(past[:, :0], past), positions(past, mask)), dim=1)


def layer_masks(past: Tensor, mask: Tensor, windows: Windows) -> Tensor | dict[str, Tensor]:
    """What a backbone takes as `attention_mask`: `causal_mask` for each kind of its layers.

    Args:
        windows: see `kava.backbones.loading.windows`.
    """
    if isinstance(windows, dict):
        return {kind: causal_mask(past, mask, window) for kind, window in windows.items()}
    return causal_mask(past, mask, windows)
