"""`kava score`: score predictions from any source by every rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kava.data import call, load_file
from kava.data.files import read_rows
from kava.data.tasks import load_task
from kava.errors import KavaError
from kava.evaluation import symbolic
from kava.evaluation.answers import (
    HEADLINE,
    RULES,
    note_on_unreadable_golds,
    percent,
    score,
    standard_error,
)
from kava.system.tables import terminal_table
from kava.types import Example

Prediction = tuple[str, str | None, str]  # its location; its id, if it has one; the text


def score_file(
    predictions: Path,
    task: str | None,
    data: str | None,
    file: str | None,
    limit: int | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Count the correct predictions by rule: `{"n": ..., "correct": {rule: count}}`.

    The result also has a `note` if gold answers contain no number (`note_on_unreadable_golds`), or
    if math-verify did not judge all predictions (`symbolic.Judged`).

    Args:
        predictions: file of rows with `prediction`, a text, and optionally `id`, as written by
            `kava eval`.
        task: the task that they answer; `file` is a local copy of its rows.
        data: alternatively, rows with `question`, `answer` and optionally `id`.
        limit: use only the first `limit` rows of the task or the data; there must be as many
            predictions.

    Raises:
        KavaError: if not exactly one of `task` and `data` is given; if rows cannot be loaded or
            read; or if there is not one prediction for each row (`paired`).
    """
    if (task is None) == (data is None):
        raise KavaError(
            "score: give the correct answers with either --task NAME or --data FILE",
            code="evaluation.task-or-data",
            key="--task",
        )
    if data and file:
        raise KavaError(
            "score: --file is for --task; it cannot be used with --data",
            code="evaluation.options-of-task",
            key="--data",
        )
    if data:
        source, given = data, {"path": data, "limit": limit, "need_steps": False}
        examples = call(load_file, source, given, {"split": "test", **options})
    else:
        loaded = load_task(task, file=file, limit=limit, options=options)
        source, examples = f"task {loaded.name} ({loaded.source})", loaded.examples
    pairs = paired(read_predictions(predictions), examples, str(predictions), source)
    with symbolic.counting() as judged:
        correct = [score(text, example.answer) for example, text in pairs]
    notes = note_on_unreadable_golds(example.answer for example in examples), judged.note()
    note = "\n".join(filter(None, notes))
    return {
        "n": len(pairs),
        "correct": {rule: sum(c[rule] for c in correct) for rule in RULES},
        **({"note": note} if note else {}),
    }


def read_predictions(file: Path) -> list[Prediction]:
    """Read the rows of a predictions file.

    Raises:
        KavaError: if the `prediction` of a row is not a text (names the line); or if there are no
            rows.
    """
    found: list[Prediction] = []
    for where, row in read_rows(file):
        if "prediction" not in row:
            raise KavaError(
                f"{where}: no field 'prediction'; the row has: {', '.join(row)}",
                code="data.missing-field",
                key="prediction",
            )
        if not isinstance(row["prediction"], str):
            told = repr(row["prediction"])[:60]
            raise KavaError(
                f"{where}: 'prediction' must be a string, the generated text, not {told}",
                code="data.bad-field",
                key="prediction",
            )
        identity = row.get("id")
        found.append((where, None if identity is None else str(identity), row["prediction"]))
    if not found:
        raise KavaError(f"{file} contains no rows", code="data.no-rows", key=str(file))
    return found


def paired(
    predictions: Sequence[Prediction], examples: Sequence[Example], file: str, source: str
) -> list[tuple[Example, str]]:
    """Pair each example with its prediction: by id if every prediction has one, otherwise by order.

    Raises:
        KavaError: by id, if an id is unknown or repeated, or an example has no prediction; by
            order, if the numbers differ, or a prediction has another id than the example in its
            place.
    """
    if any(identity is None for _, identity, _ in predictions):
        return _by_order(predictions, examples, file, source)
    known = {example.id for example in examples}
    texts: dict[str, tuple[str, str]] = {}
    for where, identity, text in predictions:
        if identity not in known:
            raise KavaError(
                f"{where}: id '{identity}' does not exist in {source}, whose {len(examples):,} "
                f"ids look like '{examples[0].id}'; if no row has an id, rows are matched by order",
                code="evaluation.unknown-id",
                key=identity,
            )
        if identity in texts:
            raise KavaError(
                f"{where}: id '{identity}' is already used by {texts[identity][0]}",
                code="data.repeated-id",
                key=identity,
            )
        texts[identity] = where, text
    missing = [example.id for example in examples if example.id not in texts]
    if missing:
        raise KavaError(
            f"{file} has {len(texts):,} rows and {source} has {len(examples):,}; the first "
            f"example without a prediction is '{missing[0]}'",
            code="evaluation.missing-predictions",
            key=missing[0],
        )
    return [(example, texts[example.id][1]) for example in examples]


def table(result: dict[str, Any], title: str) -> Table:
    """Make a table of rule, correct, and accuracy ± one standard error.

    The headline rule comes first, marked and bold. The note, if there is one, is below the table.
    """
    n, note = result["n"], f"\n{result['note']}" if "note" in result else ""
    lines = [
        (
            f"{rule} {'*' if rule == HEADLINE else ' '}",
            f"{hits:,}",
            f"{percent(hits, n):.2f} ± {standard_error(hits, n):.2f}",
        )
        for rule, hits in result["correct"].items()
    ]
    caption = f"n = {n:,}; ± is one standard error; * the headline{note}"
    bold = [place for place, rule in enumerate(result["correct"]) if rule == HEADLINE]
    return terminal_table(("rule", "correct", "accuracy (%)"), lines, (0,), title, caption, bold)


def _by_order(
    predictions: Sequence[Prediction], examples: Sequence[Example], file: str, source: str
) -> list[tuple[Example, str]]:
    if len(predictions) != len(examples):
        raise KavaError(
            f"{file} has {len(predictions):,} rows and {source} has {len(examples):,}; if a row "
            "has no id, rows are matched by order and both must have the same number",
            code="evaluation.uneven-rows",
            key=str(file),
        )
    for (where, identity, _), example in zip(predictions, examples, strict=True):
        if identity not in (None, example.id):
            raise KavaError(
                f"{where}: id '{identity}' is at the position of '{example.id}' in {source}; "
                "other rows have no id, so rows are matched by order",
                code="evaluation.other-order",
                key=identity,
            )
    return [(e, text) for e, (_, _, text) in zip(examples, predictions, strict=True)]
