"""Load the training and validation examples of a recipe, and record them for the result file."""

from __future__ import annotations

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

    With `data.overlap: drop`, training examples with a validation question are left out.

    Raises:
        KavaError: if they cannot be loaded; if a validation question is a training question, in
            normal form; or if a test question is one (`kava.training.leaks`).
    """
    train_rows = load_examples(data.train, "train", limit=data.train_rows, options=data.options)
    check_training_rows(data, train_rows, console)
    if data.validation is None:
        return train_rows, []
    validation = load_examples(
        data.validation, "validation", limit=data.validation_rows, options=data.options
    )
    if data.overlap == "drop":
        train_rows = _drop_overlap(train_rows, validation, console)
    check_no_overlap(train_rows, validation)
    return train_rows, validation


def _drop_overlap(
    rows: Sequence[Example], validation: Sequence[Example], console: Console | None
) -> list[Example]:
    """Return the training examples without a validation question; print how many are left out."""
    held_out = {normalize(e.question) for e in validation}
    kept = [e for e in rows if normalize(e.question) not in held_out]
    if console and len(kept) < len(rows):
        console.print(
            f"data.overlap: left out {len(rows) - len(kept):,} of {len(rows):,} training rows, "
            "whose questions are validation questions too",
            highlight=False,
            markup=False,
        )
    return kept


def check_no_overlap(train_rows: Sequence[Example], validation: Sequence[Example]) -> None:
    """Raise a KavaError if a validation question, in normal form, is a training question."""
    normal_forms = {normalize(e.question) for e in train_rows}
    shared = [e.question for e in validation if normalize(e.question) in normal_forms]
    if shared:
        raise KavaError(
            f"data: {len(shared)} validation questions are training questions too, "
            f"such as {min(shared)[:80]!r}",
            code="training.shared-validation",
            key="data.validation",
        )


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
