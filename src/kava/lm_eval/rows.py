"""Examples and scoring for the YAML tasks of this folder, from `kava.data.tasks`.

Examples come from the Hub, or from a local file given with `--metadata`:

    --metadata '{"svamp_file": "svamp.jsonl"}'

A file must contain the whole task, or the number of examples must be given: `"svamp_limit": 20`.
Options of a task, such as the names of the fields: `"svamp_options": {"question": "problem"}`.
"""

from typing import Any

from kava.data.tasks import load_task
from kava.errors import KavaError
from kava.evaluation.answers import HEADLINE, score

#: The rules that are reported; the headline rule is called `exact_match`.
RULES = (HEADLINE, "last_number", "string")


def load(task: str, **metadata: Any) -> dict[str, Any]:
    """Return the examples of a task for its `custom_dataset`, with id, question and answer.

    The result has one key, the name of the split: `test`.

    Args:
        task: a task of `kava.data.tasks`.
        metadata: the contents of `--metadata` and `--model_args`; `TASK_file`, `TASK_limit`
            and `TASK_options` are read.

    Raises:
        KavaError: the examples cannot be loaded or are not those of the task, or an invalid limit.
    """
    from datasets import Dataset

    limit, file = metadata.get(f"{task}_limit"), metadata.get(f"{task}_file")
    if limit is not None:
        limit = to_int(limit, f"--metadata: {task}_limit", 1)
    if file is not None and not isinstance(file, str):
        raise KavaError(
            f"--metadata: {task}_file must be the path of a file, not {file!r}",
            code="lm_eval.bad-file",
            key=f"{task}_file",
        )
    options = metadata.get(f"{task}_options", {})
    if not isinstance(options, dict):
        raise KavaError(
            f'--metadata: {task}_options must be an object such as {{"question": "problem"}}, not '
            f"{options!r}",
            code="data.bad-option",
            key=f"{task}_options",
        )
    loaded = load_task(task, file=file, limit=limit, options=options)
    rows = [{"id": e.id, "question": e.question, "answer": e.answer} for e in loaded.examples]
    return {loaded.split: Dataset.from_list(rows)}


def to_int(value: Any, name: str, minimum: int) -> int:
    """Return a whole number from a number or its digits, as the harness may pass either.

    Raises:
        KavaError: the value is not a whole number, or is below `minimum`.
    """
    try:
        number = int(str(value))  # refuses a truth value
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise KavaError(
            f"{name} must be a whole number of at least {minimum}, not {value!r}",
            code="reasoning.bad-number",
            key=name.rpartition(": ")[2],
        )
    return number


def judge(row: dict[str, str], answers: list[str]) -> dict[str, float]:
    """Score an answer, for `process_results` of a task.

    `exact_match` is the headline rule of `kava eval`.
    """
    found = score(answers[0], row["answer"], RULES)
    return {"exact_match" if rule == HEADLINE else rule: float(found[rule]) for rule in RULES}
