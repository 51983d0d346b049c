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

from kava.reasoning import batching
from kava.reasoning.batching import Row


class Rows(Dataset):
    """Rows by number; numbers beyond the last are blanks (None)."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row | None:
        return self.rows[number] if number < len(self.rows) else None


POOL = 50  # times the batch: how many rows are sorted by length at a time


class EpochOrder(Sampler[int]):
    """Numbers of the rows of one epoch after the other.

    Args:
        rows: how many.
        seed: epoch e is drawn from seed + e, as accelerate's seedable sampler does.
        together: the length is made a multiple of this with blanks.
        lengths: of the rows, where those of like length are to share a batch.
        batch: rows of a step.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        together: int,
        lengths: Sequence[int] | None = None,
        batch: int = 1,
    ):
        self.rows, self.seed, self.together = rows, seed, together
        self.lengths, self.batch = lengths, batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.together) * self.together

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(self.rows, generator=generator).tolist()
        yield from drawn if self.lengths is None else self._grouped(drawn, generator)
        yield from range(self.rows, len(self))

    def _grouped(self, drawn: list[int], generator: torch.Generator) -> Iterator[int]:
        """Each pool of drawn rows sorted and cut into batches; the batches in any order.

        Which rows meet still depends on the draw, and short rows do not come before long ones. A
        batch that is not full stays the epoch's last.
        """
        for at in range(0, len(drawn), POOL * self.batch):
            pool = sorted(drawn[at : at + POOL * self.batch], key=self.lengths.__getitem__)
            rest = len(pool) % self.batch
            short, pool = pool[:rest], pool[rest:]
            batches = [pool[i : i + self.batch] for i in range(0, len(pool), self.batch)]
            for number in torch.randperm(len(batches), generator=generator).tolist():
                yield from batches[number]
            yield from short


def collate(rows: Sequence[Row | None], pad_id: int, stand_in: Row) -> dict[str, Any]:
    """`batching.collate` without the blanks, and `weight`: 0 for a batch of blanks alone.

    That one holds `stand_in`, so that its process takes part in what all do; it counts nothing.
    """
    real = [row for row in rows if row is not None]
    return {**batching.collate(real or [stand_in], pad_id), "weight": int(bool(real))}
