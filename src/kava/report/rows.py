"""Rows of a result table: what the seeds of one recipe measured, together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kava import registry
from kava.evaluate.answers import standard_error
from kava.recipe import Recipe
from kava.run import mean_and_std

Row = dict[str, Any]
Result = dict[str, Any]
VALIDATION = "validation"
#: What answers cost: means over questions, and here over seeds.
COSTS = (
    "forward_passes", "prefill_passes", "generated_tokens", "ms_per_question",
    "ms_per_question_in_batch", "tokens_per_second",
)  # fmt: skip


def make_row(
    name: str, results: Mapping[int | None, Result | None], task: str, recipe: Recipe | None = None
) -> Row:
    """One row of a table or a plot.

    Args:
        name: what the row is called; the method's name, or more where one method has several rows.
        results: seed to what `result.json` holds, None where that seed has none; the seed None
            stands for a model that was not trained (the backbone itself).
        task: a task that was scored, or `validation` for the validation rows of the training.
        recipe: what was trained; says how many latents there are.

    Returns:
        `accuracy` is the mean over seeds in percent, `accuracy_std` the sample deviation,
        `accuracy_se` the mean of each seed's binomial standard error; `seeds` are those that
        count and `missing_seeds` those without a score. A quantity that was not measured is None.
        `train_seconds` is the mean over trainings that ran in one go.
    """
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


def _score(result: Result | None, task: str) -> dict[str, Any] | None:
    """What one seed scored, None where it did not."""
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
    """M and T of methods that have them."""
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
    """Mean accuracy over seeds by the number of steps that a problem takes."""
    by_steps = [score.get("accuracy_by_steps", {}) for score in scores]
    keys = by_steps[0] if by_steps else {}
    return {k: mean_and_std([one[k][0] for one in by_steps if k in one])[0] for k in keys}


def _mean_and_std(values: list[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return mean_and_std(known) if known else (None, None)
