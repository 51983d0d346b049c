"""ProntoQA: whether a statement follows from rules (Saparov and He, arXiv:2210.01240).

The rows come from a file with `question`, `steps` and `answer` (`True` or `False`), or are made by
`kava.data.prontoqa`. The rule `string` compares the answers; the headline `numeric` cannot.
"""

from typing import Any

from kava.data import prontoqa
from kava.data.tasks import Task
from kava.data.tasks._rows import read_or_generate

VERSION = 1


def load(
    file: str | None = None, limit: int | None = None, count: int = 500, **options: Any
) -> Task:
    """Load the rows of `file`, or generate `count` test rows, or `limit` if that is fewer.

    Args:
        options: those of `kava.data.prontoqa.generate`, such as `hops`; none with a file.

    Raises:
        KavaError: if a row is invalid, or an option is unknown or has a wrong value.
    """
    return Task(
        "prontoqa",
        VERSION,
        "test",
        *read_or_generate("prontoqa", prontoqa.generate, file, limit, count, options),
    )
