"""SVAMP: 1,000 short problems made by changing others a little (Patel et al., arXiv:2103.07191).

Its train part (700) and test part (300) together, as KaVa and CODI evaluate on it; neither is
trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kava.data.files import Row
from kava.data.tasks import Task
from kava.data.tasks._rows import Source, with_plain_answers

VERSION = 1
SOURCE = Source("SVAMP", "svamp", 1_000, "ChilleD/SVAMP", ("train", "test"))


def load(file: str | None = None, limit: int | None = None) -> Task:
    """Both parts from the Hub, or from `file`: SVAMP.json as published, or the usual fields.

    Raises:
        KavaError: a broken row; without `limit`, another number of rows than 1,000.
    """
    return Task("svamp", VERSION, "test", *SOURCE.load(file, limit, _read))


def _read(rows: Iterable[Row]) -> Iterator[Row]:
    return with_plain_answers(map(_joined, rows))


def _joined(located: Row) -> Row:
    """`Body` and `Question` as one question, and `ID` (`chal-17`) as an id."""
    where, row = located
    if not isinstance(row.get("Body"), str) or not isinstance(row.get("Question"), str):
        return located
    row = {**row, "question": f"{row['Body'].strip()} {row['Question'].strip()}"}
    return where, {**row, "id": f"svamp-{row['ID']}"} if row.get("ID") else row
