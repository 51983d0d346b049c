"""SVAMP: 1,000 short problems, variations of existing ones (Patel et al., arXiv:2103.07191).

The task consists of the train split (700) and the test split (300), as in the evaluations of KaVa
and CODI. Neither split is trained on.
"""

from collections.abc import Iterable, Iterator

from kava.data.rows import DEFAULT_COLUMNS, Columns, Row
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("SVAMP", "svamp", 1_000, "ChilleD/SVAMP", ("train", "test"), by_program=True)


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load both splits from the Hub, or `file`: SVAMP.json as published, or with the usual fields.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 1,000 rows.
    """
    return Task("svamp", VERSION, "test", *SOURCE.load(file, limit, columns, _read))


def _read(rows: Iterable[Row]) -> Iterator[Row]:
    return map(_join_question, rows)


def _join_question(located: Row) -> Row:
    """Join `Body` and `Question` to one question, and make an id of `ID` (`chal-17`)."""
    where, row = located
    if not isinstance(row.get("Body"), str) or not isinstance(row.get("Question"), str):
        return located
    row = {**row, "question": f"{row['Body'].strip()} {row['Question'].strip()}"}
    return where, {**row, "id": f"svamp-{row['ID']}"} if row.get("ID") else row
