"""MultiArith test: 180 problems with several operations (Roy and Roth, arXiv:1608.01413).

The set has 600 rows. CODI and KaVa evaluate on the 180 rows of the Hub's test split.
"""

from collections.abc import Iterable

from kava.data.rows import DEFAULT_COLUMNS, Columns, Row
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("MultiArith test", "multiarith", 180, "ChilleD/MultiArith", by_program=True)


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load the test split from the Hub, or from `file`, where rows of another `split` are left out.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 180 rows.
    """
    return Task("multiarith", VERSION, "test", *SOURCE.load(file, limit, columns, _read))


def _read(rows: Iterable[Row]) -> Iterable[Row]:
    return (row for row in rows if row[1].get("split", "test") == "test")
