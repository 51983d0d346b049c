"""MATH-500: 500 problems of MATH (Hendrycks et al., arXiv:2103.03874; Lightman et al., 2305.20050).

Most answers are LaTeX. The rule `math_verify` reads them; the headline `numeric` reads those that
are plain numbers, and `kava eval` says how many are not.
"""

from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("MATH-500", "math-500", 500, "HuggingFaceH4/MATH-500")


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load the test set from the Hub or `file`, with `problem` and `answer` or the usual fields.

    Raises:
        KavaError: if a row is invalid; or, without `limit`, if there are not 500 rows.
    """
    return Task("math_500", VERSION, "test", *SOURCE.load(file, limit, columns))
