"""Rows of a result table: the results of all seeds of one recipe, combined."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from kava.errors import KavaError, truncate
from kava.evaluation.answers import standard_error
from kava.recipe import registry
from kava.recipe.schema import Recipe

TableRow = dict[str, Any]
Result = dict[str, Any]
VALIDATION = "validation"
#: Keys that must be equal for scores of a task to be compared, and to be averaged.
COMPARED = ("version", "rule", "split", "source")
AVERAGED = ("n", *COMPARED)


FiniteNumber = Annotated[
    float, Field(strict=True, allow_inf_nan=False, ge=-sys.float_info.max, le=sys.float_info.max)
]


class _Costs(BaseModel):
    """Costs of answers: means over questions and then over seeds."""

    forward_passes: FiniteNumber | None = None
    prefill_passes: FiniteNumber | None = None
    generated_tokens: FiniteNumber | None = None
    ms_per_question: FiniteNumber | None = None
    ms_per_question_in_batch: FiniteNumber | None = None
    tokens_per_second: FiniteNumber | None = None


COSTS = tuple(_Costs.model_fields)


class _PeakMemory(BaseModel):
    bytes: FiniteNumber = 0


class _TaskScore(_Costs):
    """What a row is made of; a score has more."""

    accuracy: FiniteNumber
    accuracy_se: FiniteNumber
    n: FiniteNumber
    accuracy_by_steps: dict[str, tuple[FiniteNumber, FiniteNumber]] = {}
    peak_memory: _PeakMemory = _PeakMemory()


class _RunResult(BaseModel):
    method: str
    scores: dict[str, _TaskScore]
    validation_accuracy: FiniteNumber | None = None
    validation_n: FiniteNumber | None = None
    train_seconds: FiniteNumber | None = None


def make_row(
    name: str,
    results: Mapping[int | None, Result | None],
    task: str,
    recipe: Recipe | None = None,
    folders: Mapping[int | None, Path] | None = None,
) -> TableRow:
    """Return one row of a table or a plot.

    Args:
        name: the row's name: the method's name, or a longer one if a method has several rows.
        results: seed to the contents of `result.json`, None if that seed has none; the seed None
            stands for a model that was not trained (the backbone itself).
        task: a task that was scored, or `validation` for the validation examples of the training.
        recipe: the recipe that was trained; it gives the number of latents.
        folders: seed to run folder, for messages.

    Returns:
        `accuracy` is the mean over seeds in percent, `accuracy_std` the sample standard deviation,
        `accuracy_se` the mean of each seed's binomial standard error; `seeds` are those that
        count and `missing_seeds` those without a score. A quantity that was not measured is None.
        `train_seconds` is the mean over trainings that ran without interruption.

    Raises:
        KavaError: the seeds were not scored alike (`check_alike`, with the keys `AVERAGED`).
    """
    runs = {seed: f"{name} (seed {seed})" for seed in results} | (folders or {})
    check_alike({str(runs[seed]): result for seed, result in results.items()}, task, AVERAGED)
    scores = {seed: _score(result, task) for seed, result in results.items()}
    counted = [seed for seed, score in scores.items() if score]
    found = [score for score in scores.values() if score]
    trained = [results[seed] for seed in counted]
    accuracy, std = _mean_and_std([s["accuracy"] for s in found])
    validation, validation_std = _mean_and_std([r.get("validation_accuracy") for r in trained])
    whole = [r.get("train_seconds") for r in trained if "resumed_from" not in r]
    method = trained[0]["method"] if trained else recipe.method if recipe else name
    return {
        "name": name,
        "method": method,
        "task": task,
        "accuracy": accuracy,
        "accuracy_se": _mean_and_std([s["accuracy_se"] for s in found])[0],
        "accuracy_mean": accuracy,
        "accuracy_std": std,
        "accuracies": [s["accuracy"] for s in found],
        "accuracy_by_steps": _by_steps(found),
        "n": found[0]["n"] if found else None,
        "seeds": [seed for seed in counted if seed is not None],
        "missing_seeds": [seed for seed, score in scores.items() if not score],
        "steps": trained[0].get("steps") if trained else None,
        **{key: _mean_and_std([s.get(key) for s in found])[0] for key in COSTS},
        "peak_memory_bytes": _largest([s.get("peak_memory", {}).get("bytes") for s in found]),
        "train_seconds": _mean_and_std(whole)[0],
        "validation_accuracy": validation,
        "validation_accuracy_std": validation_std,
        **_latents(recipe),
    }


def check_alike(results: Mapping[str, Result | None], task: str, keys: Sequence[str]) -> None:
    """Check that runs answered the same questions of a task, and were scored by the same rule.

    Values that a result does not have are not compared. If the source is a file, only its name is
    compared, since folders differ between machines.

    Args:
        results: run to the contents of its `result.json`.
        keys: the keys of a score to compare.

    Raises:
        KavaError: names the first two runs that differ, and the keys in which they do.
    """
    scores = {run: _score(result, task) for run, result in results.items()}
    first: dict[str, tuple[str, Any]] = {}
    for run, score in scores.items():
        for key in keys:
            value = (score or {}).get(key)
            if value is None:
                continue
            other, known = first.setdefault(key, (run, value))
            if _comparable(key, known) != _comparable(key, value):
                differing = [k for k in keys if _values_differ(scores[other], score, k)]
                difference = ", ".join(f"{k} {scores[other][k]} and {score[k]}" for k in differing)
                raise KavaError(
                    f"{other} and {run} were not scored in the same way on '{task}' "
                    f"({difference}), so they cannot be in one table; score one of them again "
                    "with kava eval",
                    code="report.not-scored-alike",
                    key=task,
                )


def _values_differ(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    values = one.get(key), other.get(key)
    return None not in values and _comparable(key, values[0]) != _comparable(key, values[1])


def _comparable(key: str, value: Any) -> Any:
    """Return a value in the form in which it is compared."""
    if key != "source" or not isinstance(value, str) or value.endswith(")"):
        return value
    return Path(value).name


def check_result(result: Any, file: Path) -> None:
    """Check that the result of a run can become a row.

    Raises:
        KavaError: names the file, and what differs from the format that `kava eval` writes.
    """
    try:
        _RunResult.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"][:3]]  # scores, task, key
        value = result
        for part in path:
            value = value.get(part)
        place = " of ".join(f"'{part}'" for part in reversed(path[1:] or path))
        raise KavaError(
            f"{file}: not a kava result: {place}: {first['msg']}, not {truncate(repr(value), 60)}",
            code="report.not-a-result",
            key=path[-1],
        ) from None


def _score(result: Result | None, task: str) -> dict[str, Any] | None:
    """Return the score of one seed on a task, or None if it has none."""
    if result is None:
        return None
    if task != VALIDATION:
        return result.get("scores", {}).get(task)
    accuracy, n = result.get("validation_accuracy"), result.get("validation_n")
    if accuracy is None or not n:
        return None
    error = standard_error(round(accuracy * n / 100), n)
    return {"accuracy": accuracy, "accuracy_se": error, "n": n}


def _latents(recipe: Recipe | None) -> dict[str, int | None]:
    """Return M and T, each None for methods without it."""
    method = registry.find("methods", recipe.method) if recipe else None
    latents = bool(method and method.uses_latents)
    iterates = latents and method.iterates
    return {
        "num_latents": recipe.num_latents if recipe and latents else None,
        "num_iterations": recipe.num_iterations if recipe and iterates else None,
    }


def _largest(values: list[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _by_steps(scores: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean accuracy over seeds for each number of steps that a problem takes."""
    by_steps = [score.get("accuracy_by_steps", {}) for score in scores]
    keys = by_steps[0] if by_steps else {}
    return {k: mean_and_std([one[k][0] for one in by_steps if k in one])[0] for k in keys}


def _mean_and_std(values: list[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return mean_and_std(known) if known else (None, None)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (0 for one value), rounded to four decimal places.

    Tables show one decimal place.
    """
    mean = sum(values) / len(values)
    square = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    return round(mean, 4), round(square**0.5, 4)
