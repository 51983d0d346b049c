"""Your own file of questions and answers, given with `--file`."""

from typing import Any

from kava.data import call, load_file
from kava.data.files import stem_of
from kava.data.tasks import Task
from kava.errors import KavaError

VERSION = 1


def load(
    file: str | None = None, limit: int | None = None, split: str = "test", **options: Any
) -> Task:
    """Load the rows of `file` in any form that can be trained on; chains of thought may be missing.

    The task is named `rows-` plus the stem of the file, so that scores on two files never share a
    column.

    Args:
        split: the split to read of a folder that has several.
        options: those of a file in `data.options` of a recipe, such as `question`.

    Raises:
        KavaError: if no file is given, an option is unknown, or a row is invalid.
    """
    if file is None:
        raise KavaError(
            "task rows reads a file of your own; give it with --file FILE",
            code="data.file-needed",
            key="file",
        )
    given = {"path": file, "limit": limit, "split": split, "need_steps": False}
    examples = call(load_file, "task rows", given, options)
    return Task(f"rows-{stem_of(file)}", VERSION, "test", examples, file)
