"""Rows of a result table: the results of all seeds of one recipe, combined."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kava.errors import KavaError
from kava.evaluation.answers import standard_error
from kava.recipe import registry
from kava.recipe.schema import Recipe

TableRow = dict[str, Any]
Result = dict[str, Any]
VALIDATION = "validation"
#: Costs of answers: means over questions and then over seeds.
COSTS = (
    "forward_passes", "prefill_passes", "generated_tokens", "ms_per_question",
    "ms_per_question_in_batch", "tokens_per_second",
)  # fmt: skip
#: Keys that must be equal for scores of a task to be compared, and to be averaged.
COMPARED = ("version", "rule", "split", "source")
AVERAGED = ("n", *COMPARED)


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
            if _told(key, known) != _told(key, value):
                differing = [k for k in keys if _differ(scores[other], score, k)]
                told = ", ".join(f"{k} {scores[other][k]} and {score[k]}" for k in differing)
                raise KavaError(
                    f"{other} and {run} were not scored in the same way on '{task}' ({told}), but "
                    "all numbers of a row or column must be; use kava eval to score a run again",
                    code="report.not-scored-alike",
                    key=task,
                )


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    values = one.get(key), other.get(key)
    return None not in values and _told(key, values[0]) != _told(key, values[1])


def _told(key: str, value: Any) -> Any:
    """Return a value in the form in which it is compared."""
    if key != "source" or not isinstance(value, str) or value.endswith(")"):
        return value
    return Path(value).name


def check_result(result: Any, file: Path) -> None:
    """Check that the result of a run can become a row.

    Raises:
        KavaError: names the file, and what differs from the format that `kava eval` writes.
    """
    scores, where = result["scores"], f"{file}: not a kava result:"
    if not isinstance(result["method"], str):
        raise KavaError(
            f"{where} 'method' must be a name, not {_brief(result['method'])}",
            code="report.not-a-result",
            key="method",
        )
    if not isinstance(scores, dict):
        raise KavaError(
            f"{where} 'scores' must contain an object for each task, not {_brief(scores)}",
            code="report.not-a-result",
            key="scores",
        )
    for task, score in scores.items():
        if not isinstance(score, dict):
            raise KavaError(
                f"{where} the score of '{task}' must be an object, not {_brief(score)}",
                code="report.not-a-result",
                key=task,
            )
        for key in ("accuracy", "accuracy_se", "n", *COSTS):
            value = score.get(key)
            if not (_is_number(value) or (value is None and key in COSTS)):
                raise KavaError(
                    f"{where} '{key}' of '{task}' must be a number, not {value!r}",
                    code="report.not-a-result",
                    key=key,
                )
        by_steps, peak = score.get("accuracy_by_steps", {}), score.get("peak_memory", {})
        if not (isinstance(by_steps, dict) and all(map(_is_pair, by_steps.values()))):
            raise KavaError(
                f"{where} 'accuracy_by_steps' of '{task}' must contain [accuracy, n] for each "
                f"number of steps, not {_brief(by_steps)}",
                code="report.not-a-result",
                key="accuracy_by_steps",
            )
        if not (isinstance(peak, dict) and _is_number(peak.get("bytes", 0))):
            raise KavaError(
                f"{where} 'peak_memory' of '{task}' must contain a number of bytes, not "
                f"{_brief(peak)}",
                code="report.not-a-result",
                key="peak_memory",
            )
    for key in ("validation_accuracy", "validation_n", "train_seconds"):
        value = result.get(key)
        if value is not None and not _is_number(value):
            raise KavaError(
                f"{where} '{key}' must be a number, not {_brief(value)}",
                code="report.not-a-result",
                key=key,
            )


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
