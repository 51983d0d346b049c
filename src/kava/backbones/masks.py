"""Attention masks and positions for a cache with holes; the only place that computes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Sliding windows of a backbone's layers (`kava.backbones.structure.windows`).
Windows = int | dict[str, int | None] | None


def pad(sequences: Sequence[Sequence[int]], side: str, value: int = 0) -> tuple[Tensor, Tensor]:
    """Pad sequences of token ids to the length of the longest one.

    Args:
        sequences: token ids.
        side: `left` or `right`.
        value: the id of the padding.

    Returns:
        ids: [batch, columns].
        mask: boolean, [batch, columns]; true at real tokens.
    """
    width = max((len(s) for s in sequences), default=0)
    ids = torch.full((len(sequences), width), value, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for i, sequence in enumerate(sequences):
        at = slice(width - len(sequence), None) if side == "left" else slice(0, len(sequence))
        ids[i, at] = torch.tensor(sequence, dtype=torch.long)
        mask[i, at] = True
    return ids, mask


def positions(past: Tensor, mask: Tensor) -> Tensor:
    """Return the position of each new column: the number of real columns before it.

    Padding gets the position of the nearest real column; its hidden state is never used.

    Args:
        past: [batch, past], mask of the columns before the new ones.
        mask: [batch, columns], mask of the new columns.

    Returns:
        [batch, columns].
    """
    return (past.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(past: Tensor, mask: Tensor, window: int | None = None) -> Tensor:
    """Return the boolean causal attention mask of new columns after a past.

    A column attends to itself and to the real columns before it. Padding attends to itself as well,
    so that no row of the softmax is empty in any attention kernel. No other column ever attends to
    padding.

    Args:
        past: [batch, past], mask of the columns before the new ones.
        mask: [batch, columns], mask of the new columns.
        window: size of a sliding window in positions, which covers a column itself and the
            `window` - 1 real columns before it; None for full attention.

    Returns:
        [batch, 1, columns, past + columns], true where attention is allowed.
    """
    n = mask.shape[1]
    own = torch.eye(n, dtype=torch.bool, device=mask.device)
    inside = (own.new_ones(n, n).tril() & mask[:, None, :]) | own
    visible = torch.cat((past[:, None, :].expand(-1, n, -1), inside), dim=2)
    if window is not None:
        visible = visible & within_window(positions(past, mask), both_positions(past, mask), window)
    return visible[:, None]


def within_window(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Whether each key is less than `window` positions before each query.

    Positions count real columns only, so padding and holes do not count towards the window.

    Args:
        queries: [batch, queries], positions of the queries.
        keys: [batch, keys], positions of the keys.
        window: size of the sliding window in positions.

    Returns:
        [batch, queries, keys].
    """
    return queries[:, :, None] - keys[:, None, :] < window


def both_positions(past: Tensor, mask: Tensor) -> Tensor:
    """Return the positions of past and new columns together, [batch, past + columns]."""
    return torch.cat((positions(past[:, :0], past), positions(past, mask)), dim=1)


def to_additive(mask: Tensor, dtype: torch.dtype, copies: int = 1) -> Tensor:
    """Convert a boolean attention mask to one that is added to the attention logits.

    A kernel would convert a boolean mask in each layer. The memory-efficient kernel of GPUs also
    needs rows that begin at multiples of 8 elements, and would copy any other mask in each layer,
    or fail in compiled code. So the result is wider than the mask, and attention takes a slice;
    compiled code would be compiled again for each width if it were given the slice.

    Args:
        mask: boolean, [batch, 1, columns, past + columns].
        dtype: the dtype in which attention is computed.
        copies: number of query heads for which each row is repeated.

    Returns:
        [batch, copies, columns, width], with a width above past + columns that is a multiple of 8;
        0 where attention is allowed, otherwise -inf.
    """
    batch, _, columns, width = mask.shape
    storage = batch, copies, columns, (width // ALIGNMENT + 1) * ALIGNMENT
    numbers = torch.full(storage, -torch.inf, dtype=dtype, device=mask.device)
    numbers[..., :width].masked_fill_(mask, 0)
    return numbers


ALIGNMENT = 8  # elements


def layer_masks(
    past: Tensor, mask: Tensor, windows: Windows, dtype: torch.dtype, copies: int = 1
) -> Tensor | dict[str, Tensor]:
    """Return the `attention_mask` of a backbone: an additive mask for each kind of layer.

    Args:
        past, mask: see `causal_mask`.
        windows: see `kava.backbones.structure.windows`.
        dtype, copies: see `to_additive`.
    """
    if isinstance(windows, dict):
        kinds = windows.items()
        return {k: to_additive(causal_mask(past, mask, one), dtype, copies) for k, one in kinds}
    return to_additive(causal_mask(past, mask, windows), dtype, copies)
