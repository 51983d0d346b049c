"""GSM8K test: 1,319 grade-school word problems (Cobbe et al., arXiv:2110.14168)."""

from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("GSM8K test", "gsm8k-test", 1_319, "openai/gsm8k", config="main")


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load the test set from the Hub or `file`, as published or in a form of `load_examples`.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 1,319 rows.
    """
    return Task("gsm8k", VERSION, "test", *SOURCE.load(file, limit, columns))
