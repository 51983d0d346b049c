"""GSM8K-Platinum: GSM8K test without its mistakes, 1,209 rows (Vendrow et al., arXiv:2502.03461).

The rule `numeric` reads every answer. Like GSM8K test, it must not be trained on.
"""

from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("GSM8K-Platinum", "gsm8k-platinum", 1_209, "madrylab/gsm8k-platinum", config="main")


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load the test set from the Hub or `file`, as published or in a form of `load_examples`.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 1,209 rows.
    """
    return Task("gsm8k_platinum", VERSION, "test", *SOURCE.load(file, limit, columns))
