"""`kava score`: score predictions from any source by every rule."""

from typing import Any

from rich.table import Table

from kava.data import call, load_file
from kava.data.tasks import load_task
from kava.errors import KavaError
from kava.evaluation import symbolic
from kava.evaluation.answers import (
    HEADLINE,
    RULES,
    note_on_markers,
    note_on_unreadable_golds,
    percent,
    score,
    standard_error,
)
from kava.evaluation.predictions import pair_with_examples, read_predictions
from kava.system.tables import terminal_table


def score_file(
    predictions: str,
    task: str | None,
    data: str | None,
    file: str | None,
    limit: int | None,
    options: dict[str, Any],
    field: str | None = None,
) -> dict[str, Any]:
    """Count the correct predictions by rule: `{"n": ..., "correct": {rule: count}}`.

    The result also has a `note` if right answers are not numbers (`note_on_unreadable_golds`), if
    predictions have no marker or several (`note_on_markers`), or if math-verify did not judge all
    predictions (`symbolic.TimeoutCounts`).

    Args:
        predictions: file of rows with `prediction`, a text, and optionally `id`, as written by
            `kava eval`; or the samples of lm-evaluation-harness.
        task: the task that they answer; `file` is a local copy of its rows.
        data: alternatively, rows with `question`, `answer` and optionally `id`.
        limit: use only the first `limit` rows of the task or the data; there must be as many
            predictions.
        field: the field of the predictions, see `read_predictions`.

    Raises:
        KavaError: if not exactly one of `task` and `data` is given; if rows cannot be loaded or
            read; or if there is not one prediction for each row (`pair_with_examples`).
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
    pairs = pair_with_examples(read_predictions(predictions, field), examples, predictions, source)
    texts, golds = [text for _, text in pairs], [example.answer for example, _ in pairs]
    with symbolic.count_timeouts() as judged:
        correct = [score(*pair) for pair in zip(texts, golds, strict=True)]
    notes = (note_on_unreadable_golds(golds), note_on_markers(texts, golds, correct), judged.note())
    note = "\n".join(filter(None, notes))
    return {
        "n": len(pairs),
        "correct": {rule: sum(c[rule] for c in correct) for rule in RULES},
        **({"note": note} if note else {}),
    }


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
