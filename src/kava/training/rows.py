"""Load the training and validation examples of a recipe, and record them for the result file."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from kava.data import load_examples, revision, rows_hash
from kava.errors import KavaError
from kava.recipe.schema import Data
from kava.training.leaks import check_training_rows, normalize
from kava.types import Example


def read_rows(data: Data, console: Console | None = None) -> tuple[list[Example], list[Example]]:
    """Load the training and validation examples of a recipe.

    With `data.overlap: skip`, training examples with a validation question are left out.

    Raises:
        KavaError: if they cannot be loaded; as `drop_validation_questions`; or if a training
            question is a test question (`kava.training.leaks`).
    """
    train_rows = load_examples(data.train, "train", limit=data.train_rows, options=data.options)
    check_training_rows(data, train_rows, console)
    if data.validation is None:
        return train_rows, []
    validation = load_examples(
        data.validation, "validation", limit=data.validation_rows, options=data.options
    )
    return drop_validation_questions(train_rows, validation, data, console), validation


def drop_validation_questions(
    train_rows: Sequence[Example],
    validation: Sequence[Example],
    data: Data,
    console: Console | None = None,
) -> list[Example]:
    """Return the training examples without those whose question is also a validation question.

    Questions are compared in normal form (`kava.training.leaks.normalize`).

    Raises:
        KavaError: if there are such examples and `data.overlap` is `error`, or no others are left.
    """
    held_out = {normalize(e.question) for e in validation}
    kept = [e for e in train_rows if normalize(e.question) not in held_out]
    if (left_out := len(train_rows) - len(kept)) == 0:
        return kept
    shared = held_out & {normalize(e.question) for e in train_rows}
    such = min(e.question for e in validation if normalize(e.question) in shared)
    if data.overlap == "error" or not kept:
        raise KavaError(
            f"data: {len(shared)} validation questions are also in the training data, such as "
            f"{such[:80]!r}; leave them out of the training with data.overlap=skip, or choose "
            "other validation rows",
            code="training.shared-validation",
            key="data.validation",
        )
    if console:
        console.print(
            f"data.overlap: {left_out:,} training rows are left out, because {len(shared)} "
            f"validation questions are also in the training data, such as {such[:80]!r}",
            highlight=False,
            markup=False,
        )
    return kept


def data_record(
    data: Data, rows: Sequence[Example], validation: Sequence[Example]
) -> dict[str, Any]:
    """Describe the data of a run: source, revision on the Hub, number and hash of the examples."""
    parts = {"train": (data.train, rows), "validation": (data.validation, validation)}
    return {
        part: {
            "source": name,
            "rows": len(examples),
            "revision": revision(name, data.options),
            "sha256": rows_hash(examples),
        }
        for part, (name, examples) in parts.items()
        if name is not None
    }
