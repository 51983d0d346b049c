"""Your own file of questions and answers, given with `--file`."""

from __future__ import annotations

from kava.data.files import read_rows, to_examples
from kava.data.tasks import Task
from kava.data.tasks._rows import unfold
from kava.errors import KavaError
from kava.system import assets

VERSION = 1


def load(file: str | None = None, limit: int | None = None) -> Task:
    """Load the rows of `file` in any format for training; chains of thought may be missing.

    The task is named `rows-` plus the stem of the file, so that scores on two files never share a
    column.

    Raises:
        KavaError: if no file is given, or a row is invalid.
    """
    if file is None:
        raise KavaError(
            "task rows reads a file of your own; give it with --file FILE",
            code="data.file-needed",
            key="file",
        )
    path = assets.expand_user(file)
    examples = to_examples(unfold(read_rows(path)), str(path), path.stem, limit)
    return Task(f"rows-{path.stem}", VERSION, "test", examples, str(path))
