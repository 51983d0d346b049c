"""GSM-Hard: GSM8K test with large numbers, 1,319 rows (Gao et al., PAL, arXiv:2211.10435).

Answers were computed by programs: some are negative, some not whole, some tiny. They are compared
as they stand, to the last digit (`numeric`). Some hundred questions are still word for word those
of GSM8K test.
"""

from __future__ import annotations

from kava.data.tasks import Task
from kava.data.tasks._rows import Source, with_plain_answers

VERSION = 1
# The Hub has it as one split, which it calls train; nothing is trained on it.
SOURCE = Source("GSM-Hard", "gsm-hard", 1_319, "reasoning-machines/gsm-hard", ("train",))


def load(file: str | None = None, limit: int | None = None) -> Task:
    """All rows from the Hub, or from `file`: its fields `input` and `target`, or the usual ones.

    Raises:
        KavaError: a broken row; without `limit`, another number of rows than 1,319.
    """
    return Task("gsm_hard", VERSION, "test", *SOURCE.load(file, limit, with_plain_answers))
