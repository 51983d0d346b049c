"""GSM-Hard: GSM8K test with large numbers, 1,319 rows (Gao et al., PAL, arXiv:2211.10435).

The answers were computed by programs: some are negative, some are not whole numbers, some are tiny.
They are compared as they are, to the last digit (rule `numeric`). About a hundred questions are
still identical, word for word, to those of GSM8K test.
"""

from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
# The Hub has a single split, which is called train; nothing is trained on it.
SOURCE = Source(
    "GSM-Hard", "gsm-hard", 1_319, "reasoning-machines/gsm-hard", ("train",), by_program=True
)


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load all rows from the Hub, or from `file` with fields `input` and `target`, or the usual.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 1,319 rows.
    """
    return Task("gsm_hard", VERSION, "test", *SOURCE.load(file, limit, columns))
