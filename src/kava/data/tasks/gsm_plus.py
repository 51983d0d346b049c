"""GSM-Plus: variations of GSM8K test, 10,552 rows (Li et al., arXiv:2402.19255).

The questions of one kind of variation have no answer, which is written `None`. The rule `numeric`
reads all others; `kava eval` says how many there are.
"""

from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("GSM-Plus", "gsm-plus", 10_552, "qintongli/GSM-Plus")


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load the test split from the Hub or `file`.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 10,552 rows.
    """
    return Task("gsm_plus", VERSION, "test", *SOURCE.load(file, limit, columns))
