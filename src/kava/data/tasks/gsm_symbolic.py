"""Problems from templates of GSM8K's test questions, made by `kava.data.gsm_symbolic`.

Scores on the templates that are never trained on are stored as `gsm_symbolic-unseen`. They are not
scores on GSM8K.
"""

from typing import Any

from kava.data import gsm_symbolic
from kava.data.tasks import Task
from kava.data.tasks._rows import read_or_generate

VERSION = 1


def load(
    file: str | None = None,
    limit: int | None = None,
    count: int = 1000,
    templates: str = "seen",
    **options: Any,
) -> Task:
    """Generate `count` test problems, or `limit` if that is fewer, or load the rows of `file`.

    Args:
        templates: "seen" or "unseen", whether the training has problems of the same templates.
        options: those of `kava.data.gsm_symbolic.generate`, such as `seed`; with a file, the
            options of `kava.data.rows.Columns`.

    Raises:
        KavaError: if reasoning-gym is not installed, an option is unknown or has a wrong value, or
            a row is invalid.
    """
    if not file:
        options["templates"] = templates
    examples, source = read_or_generate(
        "gsm_symbolic", gsm_symbolic.generate, file, limit, count, options
    )
    name = "gsm_symbolic-unseen" if templates == "unseen" else "gsm_symbolic"
    return Task(name, VERSION, "test", examples, source)
