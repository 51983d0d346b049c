"""The order of the training examples, which does not depend on the number of processes.

An epoch is a permutation drawn from the recipe's seed and the number of the epoch. It is cut into
micro-batches, and process p of N takes every N-th of them, starting with the p-th. A step therefore
has the same micro-batches for any N. The last round is filled up with blanks, which are no
examples.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from kava.reasoning import batching
from kava.reasoning.batching import Row


class EncodedRows(Dataset):
    """Encoded examples by index; indices beyond the last example are blanks (None)."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row | None:
        return self.rows[number] if number < len(self.rows) else None


POOL = 50  # batches whose examples are sorted by length together


class EpochOrder(Sampler[int]):
    """Sampler of the indices of one epoch's examples.

    Args:
        rows: number of examples.
        seed: epoch e is drawn from seed + e, as in accelerate's seedable sampler.
        multiple_of: the length is rounded up with blanks to a multiple of this.
        lengths: lengths of the examples, to put examples of similar length into the same batch.
        batch: number of examples in a step.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        multiple_of: int,
        lengths: Sequence[int] | None = None,
        batch: int = 1,
    ):
        self.rows, self.seed, self.multiple_of = rows, seed, multiple_of
        self.lengths, self.batch = lengths, batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.multiple_of) * self.multiple_of

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(self.rows, generator=generator).tolist()
        yield from (
            drawn if not self.lengths else self._group_by_length(drawn, self.lengths, generator)
        )
        yield from range(self.rows, len(self))  # blanks, which are no examples

    def _group_by_length(
        self, drawn: list[int], lengths: Sequence[int], generator: torch.Generator
    ) -> Iterator[int]:
        """Sort each pool of drawn examples by length, cut it into batches, and shuffle the batches.

        Which examples share a batch still depends on the draw, and short examples do not come
        before long ones. A batch that is not full stays the last of the epoch.
        """
        for at in range(0, len(drawn), POOL * self.batch):
            pool = sorted(drawn[at : at + POOL * self.batch], key=lengths.__getitem__)
            rest = len(pool) % self.batch
            short, pool = pool[:rest], pool[rest:]
            batches = [pool[i : i + self.batch] for i in range(0, len(pool), self.batch)]
            for number in torch.randperm(len(batches), generator=generator).tolist():
                yield from batches[number]
            yield from short


MANY = 10_000  # micro-batches, of which the widest is looked for


def widest(
    sizes: Sequence[tuple[int, ...]], order: EpochOrder, together: int, epochs: int = 1
) -> list[int]:
    """Return the indices of the examples of the widest of many micro-batches.

    Each part of a micro-batch is padded to the longest of its examples, so that a micro-batch is
    wider than any of them.

    Args:
        sizes: for each example, the tokens of its parts, which are padded apart.
        order: draws the examples.
        together: number of examples in a micro-batch.
        epochs: number of epochs to draw; fewer if these have more than `MANY` micro-batches.
    """
    found: list[int] = []
    most = -1
    for epoch in range(min(epochs, -(-MANY * together // order.rows))):
        order.set_epoch(epoch)
        drawn = [index for index in order if index < order.rows]
        for at in range(0, len(drawn), together):
            part = drawn[at : at + together]
            cells = len(part) * sum(map(max, zip(*(sizes[i] for i in part), strict=True)))
            if cells > most:
                found, most = part, cells
    return found


def collate(rows: Sequence[Row | None], pad_id: int, stand_in: Row) -> dict[str, Any]:
    """Collate a micro-batch without its blanks; `weight` is 0 for a batch that has only blanks.

    Such a batch contains `stand_in`, so that its process takes part in the collective operations;
    it does not count. See `batching.collate`.
    """
    real = [row for row in rows if row is not None]
    return {**batching.collate(real or [stand_in], pad_id), "weight": int(bool(real))}
