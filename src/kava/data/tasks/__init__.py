"""The tasks that a model is evaluated on. To add a task, add one file to this folder.

The file defines `VERSION`, which increases whenever the rows or their text change, so that scores
of different versions are never compared, and `load(file, limit, **options) -> Task`. If `load` also
takes `columns`, the names of the fields can be given as options of the task.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.data import call
from kava.data.rows import COLUMN_OPTIONS, Columns
from kava.errors import KavaError
from kava.recipe import registry
from kava.types import Example


@dataclass(frozen=True)
class Task:
    """The examples of one evaluation task, in order, and where they were loaded from."""

    name: str
    version: int
    split: str
    examples: list[Example]
    source: str


def load_task(
    name: str,
    *,
    file: str | None = None,
    limit: int | None = None,
    options: dict[str, Any] | None = None,
) -> Task:
    """Load a task by its file name in this folder.

    Args:
        file: a local copy, for tasks that come from the Hub.
        limit: load only the first `limit` examples.
        options: keyword arguments of the task, and for a task of a published test set the options
            of `kava.data.rows.Columns`, such as `question`.

    Raises:
        KavaError: if the task or an option is unknown; if the rows cannot be loaded; or if `limit`
            is below 1.
    """
    if limit is not None and limit < 1:
        raise KavaError(
            f"task {name}: limit must be at least 1, not {limit}",
            code="data.bad-limit",
            key="limit",
        )
    module = registry.module("tasks", name)
    options = dict(options or {})
    given: dict[str, Any] = {"file": file, "limit": limit}
    further: tuple[str, ...] = ()
    if "columns" in inspect.signature(module.load).parameters:
        further = COLUMN_OPTIONS
        chosen = {option: options.pop(option) for option in further if option in options}
        given["columns"] = Columns(**chosen)
    return call(module.load, f"task {name}", given, options, further)


def local_copies(
    command: str, tasks: Sequence[str], files: Sequence[str] | None
) -> list[str | None]:
    """Pair tasks with local files: one file for each task, in the same order, or no files at all.

    Raises:
        KavaError: if the numbers differ. The message names the tasks without a file, or the files
            without a task.
    """
    if not files:
        return [None] * len(tasks)
    if not tasks:
        raise KavaError(
            f"{command}: --file contains the examples of a task; name that task with --task",
            code="data.file-without-task",
            key="--file",
        )
    if len(files) != len(tasks):
        less = len(files) < len(tasks)
        which = (
            f"none for {', '.join(tasks[len(files) :])}"
            if less
            else f"no task for {', '.join(files[len(tasks) :])}"
        )
        counted = f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}"
        raise KavaError(
            f"{command}: {len(files)} --file for {counted}, {which}; give one --file per task, in "
            "the order of the tasks",
            code="data.files-and-tasks",
            key="--file",
        )
    return list(files)


def read_options(command: str, words: list[str]) -> dict[str, Any]:
    """Parse `key=value` words; values are written as in a recipe.

    Raises:
        KavaError: if a word does not have this form.
    """
    from kava.recipe.load import parse

    options = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise KavaError(
                f"{command}: --option {word}: must have the form key=value",
                code="data.bad-option-word",
                key=word,
            )
        options[key] = parse(value, f"{command}: --option {key}")
    return options
