"""MultiArith test: 180 problems of several operations (Roy and Roth, arXiv:1608.01413).

The set has 600 rows; the 180 of the Hub's test split are those that CODI and KaVa evaluate on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kava.data.files import Row
from kava.data.tasks import Task
from kava.data.tasks._rows import Source, with_plain_answers

VERSION = 1
SOURCE = Source("MultiArith test", "multiarith", 180, "ChilleD/MultiArith")


def load(file: str | None = None, limit: int | None = None) -> Task:
    """The test split from the Hub, or from `file`, where rows of another `split` are left out.

    Raises:
        KavaError: a broken row; without `limit`, another number of rows than 180.
    """
    return Task("multiarith", VERSION, "test", *SOURCE.load(file, limit, _read))


def _read(rows: Iterable[Row]) -> Iterator[Row]:
    return with_plain_answers(row for row in rows if row[1].get("split", "test") == "test")
