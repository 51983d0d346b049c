"""The order of the training rows: that of one process, however many share them.

An epoch is a permutation drawn from the recipe's seed and the epoch's number. It is cut into
micro-batches, and process p of N takes every N-th of them from the p-th on; so a step has the same
micro-batches with any N. What is missing for the last round is made up with blanks, which stand
for no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from kava import batching
from kava.batching import Row


class Rows(Dataset):
    """Rows by number; numbers beyond the last are blanks (None)."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row | None:
        return self.rows[number] if number < len(self.rows) else None


class EpochOrder(Sampler[int]):
    """Numbers of the rows of one epoch after the other.

    Args:
        rows: how many.
        seed: epoch e is drawn from seed + e, as accelerate's seedable sampler does.
        together: the length is made a multiple of this with blanks.
    """

    def __init__(self, rows: int, seed: int, together: int):
        self.rows, self.seed, self.together = rows, seed, together
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.together) * self.together

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from range(self.rows, len(self))


def collate(rows: Sequence[Row | None], pad_id: int, stand_in: Row) -> dict[str, Any]:
    """`batching.collate` without the blanks, and `weight`: 0 for a batch of blanks alone.

    That one holds `stand_in`, so that its process takes part in what all do; it counts nothing.
    """
    real = [row for row in rows if row is not None]
    return {**batching.collate(real or [stand_in], pad_id), "weight": int(bool(real))}
