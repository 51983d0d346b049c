"""`kava compare`: compare two runs on the same questions, question by question."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kava.data.files import read_rows
from kava.errors import KavaError
from kava.evaluation.answers import HEADLINE, standard_error
from kava.evaluation.paired import check_seed, mcnemar, paired_bootstrap


@dataclass(frozen=True)
class Comparison:
    """Comparison of two runs, `a` and `b`, under one rule of reading answers.

    accuracy_a, accuracy_b: accuracies in percent.
    difference: b - a, in percentage points.
    low, high: the interval that contains 95 % of the differences of the bootstrap.
    only_a, only_b, both, neither: number of questions that were answered correctly by these runs.
    p: McNemar's exact two-sided test on `only_a` and `only_b`.
    """

    task: str
    rule: str
    n: int
    accuracy_a: float
    accuracy_se_a: float
    accuracy_b: float
    accuracy_se_b: float
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    both: int
    neither: int
    p: float

    def record(self) -> dict[str, Any]:
        """Return the comparison as a dictionary, for JSON."""
        return asdict(self)


def compare(a: Path, b: Path, task: str, rule: str = HEADLINE, seed: int = 0) -> Comparison:
    """Compare the predictions of two runs, matched by id.

    Args:
        a, b: run folders, or prediction files.
        task: the task whose predictions are read from a run folder.
        seed: seed of the bootstrap.

    Raises:
        KavaError: if there are no predictions, or a row is not one; if the two have different
            questions or answers; if one of them was not scored by the rule; or if the seed is out
            of range.
    """
    check_seed(seed)
    files = [_predictions(path, task) for path in (a, b)]
    first, second = (_read(file, rule) for file in files)
    _same_questions(files, first, second)
    pairs = [(row["correct"][rule], second[key]["correct"][rule]) for key, row in first.items()]
    n, both = len(pairs), sum(x and y for x, y in pairs)
    hits_a, hits_b = sum(x for x, _ in pairs), sum(y for _, y in pairs)
    right_a, right_b = [x for x, _ in pairs], [y for _, y in pairs]
    low, high = paired_bootstrap(right_b, right_a, seed)
    return Comparison(
        task=task,
        rule=rule,
        n=n,
        accuracy_a=round(100 * hits_a / n, 2),
        accuracy_se_a=standard_error(hits_a, n),
        accuracy_b=round(100 * hits_b / n, 2),
        accuracy_se_b=standard_error(hits_b, n),
        difference=round(100 * (hits_b - hits_a) / n, 2),
        low=round(low, 2),
        high=round(high, 2),
        only_a=hits_a - both,
        only_b=hits_b - both,
        both=both,
        neither=n - hits_a - hits_b + both,
        p=mcnemar(right_a, right_b),
    )


def tasks_of(run: Path) -> list[str]:
    """Return the tasks for which a run folder contains predictions."""
    return sorted(file.stem for file in (run / "predictions").glob("*.jsonl"))


def format_summary(a: str, b: str, comparison: Comparison) -> str:
    """Format the comparison as lines of text."""
    p = f"{comparison.p:.2g}" if comparison.p >= 1e-4 else "< 0.0001"
    width = max(len(a), len(b))
    return "\n".join(
        [
            f"{comparison.task}: {comparison.n:,} questions answered by both, "
            f"read by '{comparison.rule}'",
            f"A  {a:<{width}}  {comparison.accuracy_a:.2f} ± {comparison.accuracy_se_a:.2f} %",
            f"B  {b:<{width}}  {comparison.accuracy_b:.2f} ± {comparison.accuracy_se_b:.2f} %",
            f"B - A  {comparison.difference:+.2f} points, 95 % interval {comparison.low:+.2f} to "
            f"{comparison.high:+.2f} (bootstrap over questions)",
            f"right only in A {comparison.only_a}, only in B {comparison.only_b}, "
            f"in both {comparison.both}, in neither {comparison.neither}; "
            f"McNemar's exact test: p {p}",
        ]
    )


def _predictions(path: Path, task: str) -> Path:
    if path.is_file():
        return path
    file = path / "predictions" / f"{task}.jsonl"
    if not file.is_file():
        known = ", ".join(tasks_of(path)) or "none"
        raise KavaError(
            f"{path}: no predictions for task '{task}' (found: {known})",
            code="evaluation.no-predictions",
            key=task,
        )
    return file


def _read(file: Path, rule: str) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for where, row in read_rows(file):
        correct = row.get("correct")
        if row.get("id") is None or not isinstance(correct, dict):
            raise KavaError(
                f"{where}: not a prediction of kava eval (an object with id and correct, "
                "where correct has true or false per rule); for other predictions, use kava score",
                code="evaluation.not-a-prediction",
                key=where,
            )
        if rule not in correct:
            known = ", ".join(correct) or "none"
            raise KavaError(
                f"{where}: not scored by the rule '{rule}' (found: {known})",
                code="evaluation.unknown-rule",
                key=rule,
            )
        if not isinstance(correct[rule], bool):
            value = repr(correct[rule])[:60]
            raise KavaError(
                f"{where}: '{rule}' in 'correct' must be true or false, not {value}",
                code="evaluation.not-a-verdict",
                key=rule,
            )
        identity = str(row["id"])
        if identity in rows:
            raise KavaError(
                f"{where}: id '{identity}' appears twice", code="data.repeated-id", key=identity
            )
        rows[identity] = row
    if not rows:
        raise KavaError(f"{file}: contains no predictions", code="data.no-rows", key=str(file))
    return rows


def _same_questions(files: list[Path], first: dict[str, Any], second: dict[str, Any]) -> None:
    for one, other, file in ((first, second, files[1]), (second, first, files[0])):
        missing = [key for key in one if key not in other]
        if missing:
            raise KavaError(
                f"{file}: has no answer to {len(missing)} of the {len(one)} questions, such as "
                f"'{missing[0]}'; only runs on the same questions can be compared",
                code="evaluation.missing-answers",
                key=missing[0],
            )
    for key, row in first.items():
        if row.get("answer") != second[key].get("answer"):
            raise KavaError(
                f"{files[1]}: question '{key}' has the answer {second[key].get('answer')!r}, but "
                f"{row.get('answer')!r} in {files[0]}; the runs were not scored on the same "
                "questions",
                code="evaluation.other-answer",
                key=key,
            )
