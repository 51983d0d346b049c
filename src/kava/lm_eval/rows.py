"""What the YAML tasks of this folder are made of: rows and scoring of `kava.data.tasks`.

Rows come from the Hub, or from a local file that `--metadata` names:

    --metadata '{"svamp_file": "svamp.jsonl"}'

A file must hold the whole task, or say how many rows to take: `"svamp_limit": 20`.
"""

from __future__ import annotations

from typing import Any

from kava.data.tasks import load_task
from kava.errors import KavaError
from kava.evaluation.answers import HEADLINE, score

#: The rules beside the headline (`exact_match`) that are reported.
RULES = (HEADLINE, "last_number", "string")


def load(task: str, **metadata: Any) -> dict[str, Any]:
    """`custom_dataset` of a task: its rows as the split `test`, with id, question and answer.

    Args:
        task: of `kava.data.tasks`.
        metadata: what `--metadata` and `--model_args` hold; `TASK_file` and `TASK_limit` are read.

    Raises:
        KavaError: rows that cannot be had, or are not those of the task; a limit that is none.
    """
    from datasets import Dataset

    limit, file = metadata.get(f"{task}_limit"), metadata.get(f"{task}_file")
    if limit is not None:
        limit = whole(limit, f"--metadata: {task}_limit", 1)
    if file is not None and not isinstance(file, str):
        raise KavaError(
            f"--metadata: {task}_file must be the path of a file, not {file!r}",
            code="lm_eval.bad-file",
            key=f"{task}_file",
        )
    loaded = load_task(task, file=file, limit=limit)
    rows = [{"id": e.id, "question": e.question, "answer": e.answer} for e in loaded.examples]
    return {loaded.split: Dataset.from_list(rows)}


def whole(value: Any, name: str, least: int) -> int:
    """A whole number as the harness hands it on, a number or its digits.

    Raises:
        KavaError: it is none, or below `least`.
    """
    try:
        number = (
            value if isinstance(value, int) and not isinstance(value, bool) else int(str(value))
        )
    except ValueError:
        number = least - 1
    if number < least:
        raise KavaError(
            f"{name} must be a whole number from {least}, not {value!r}",
            code="reasoning.bad-number",
            key=name.rpartition(": ")[2],
        )
    return number


def judge(row: dict[str, str], answers: list[str]) -> dict[str, float]:
    """`process_results` of a task: `exact_match` is the headline of `kava eval`."""
    found = score(answers[0], row["answer"], RULES)
    return {"exact_match" if rule == HEADLINE else rule: float(found[rule]) for rule in RULES}
