"""ASDiv: 2,305 problems of primary schools (Miao et al., ACL 2020, arXiv:2106.15772).

The rule `numeric` reads the answers, of which the unit is left out (`9 (apples)` becomes `9`); for
the few that are words or a ratio, `kava eval` names the rule.
"""

from collections.abc import Iterable, Iterator

from kava.data.rows import DEFAULT_COLUMNS, Columns, Row
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
# The Hub has a single split, which is called validation.
SOURCE = Source("ASDiv", "asdiv", 2_305, "EleutherAI/asdiv", ("validation",))


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load all rows from the Hub or `file`: with `body` and `question`, or with the usual fields.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 2,305 rows.
    """
    return Task("asdiv", VERSION, "test", *SOURCE.load(file, limit, columns, _read))


def _read(rows: Iterable[Row]) -> Iterator[Row]:
    """Join `body` and `question` to one question, and remove the unit from the answer."""
    for where, row in rows:
        changed = dict(row)
        if isinstance(row.get("body"), str) and isinstance(row.get("question"), str):
            changed["question"] = f"{row['body'].strip()} {row['question'].strip()}"
        if isinstance(row.get("answer"), str) and row["answer"].endswith(")"):
            changed["answer"] = row["answer"].partition(" (")[0]
        yield where, changed
