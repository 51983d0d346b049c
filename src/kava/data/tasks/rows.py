"""Rows of your own: a file with questions and answers, given with `--file`."""

from __future__ import annotations

from kava.data.files import read_rows, to_examples
from kava.data.tasks import Task
from kava.data.tasks._rows import unfold
from kava.errors import KavaError
from kava.system import assets

VERSION = 1


def load(file: str | None = None, limit: int | None = None) -> Task:
    """Rows of `file` in any form that can be trained on; written steps may be missing.

    The task is called `rows-` and the file's stem, so that scores on two files are never put into
    one column.

    Raises:
        KavaError: no file, or a broken row.
    """
    if file is None:
        raise KavaError(
            "task rows is a file of your own; name it with --file FILE",
            code="data.file-needed",
            key="file",
        )
    path = assets.expand_user(file)
    examples = to_examples(unfold(read_rows(path)), str(path), path.stem, limit)
    return Task(f"rows-{path.stem}", VERSION, "test", examples, str(path))
