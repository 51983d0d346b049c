"""AIME: the 30 problems of a year of the American Invitational Mathematics Examination.

Every answer is a whole number from 0 to 999, which the rule `numeric` reads (`033` is 33).
"""

from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.data.tasks._rows import Source
from kava.errors import unknown_name

VERSION = 1
# The Hub has a single split, which is called train; nothing is trained on it.
HUB = {2024: "HuggingFaceH4/aime_2024", 2025: "MathArena/aime_2025"}


def load(
    file: str | None = None,
    limit: int | None = None,
    year: int = 2024,
    columns: Columns = DEFAULT_COLUMNS,
) -> Task:
    """Load the problems of a year from the Hub or `file`; `aime-2024` is the name of the scores.

    Args:
        year: 2024 or 2025.

    Raises:
        KavaError: if the year is unknown; if a row is invalid; or, without `limit`, if there are
            not 30 rows.
    """
    if year not in HUB:
        raise unknown_name("year of task aime", str(year), map(str, HUB), code="data.unknown-year")
    source = Source(f"AIME {year}", f"aime-{year}", 30, HUB[year], ("train",))
    return Task(f"aime-{year}", VERSION, "test", *source.load(file, limit, columns))
