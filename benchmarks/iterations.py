r"""What iterations cost and bring: fixed T against `auto`, alone and in batches.

    python benchmarks/iterations.py kava=checkpoints/quickstart/kava \
        cot=checkpoints/quickstart/backbone

Each model is NAME=CHECKPOINT. Accuracy is that of generated validation problems, which are never
trained on; test problems are not used. A model whose latents are computed until they no longer
change is measured with each T and each tolerance, any other with its own T. Times are taken in
rounds in which all settings take turns. Writes results/bench/iterations.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from kava.data.synthetic import generate
from kava.evaluation.answers import HEADLINE
from kava.evaluation.runner import evaluate
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.system.environment import provenance
from kava.system.files import write_json
from kava.types import Example

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "iterations.json"
ITERATIONS = tuple(range(9))
TOLERANCES = (0.01, 0.03, 0.1, 0.2, 0.3)
#: Questions that are timed in one round, by the number that is answered at once.
TIMED = {1: 40, 32: 320, 256: 1024}


@dataclass(frozen=True)
class Setting:
    """A model with its iterations; `num_iterations` is None for a model that does not iterate."""

    model: str
    reasoner: Reasoner
    num_iterations: int | Literal["auto"] | None

    def describe(self) -> dict[str, Any]:
        """Return what a result says about it."""
        about: dict[str, Any] = {"model": self.model, "method": self.reasoner.recipe.method}
        if self.num_iterations is not None:
            about |= {
                "num_latents": self.reasoner.recipe.num_latents,
                "num_iterations": self.num_iterations,
            }
        if self.num_iterations == "auto":
            about["tolerance"] = self.reasoner.recipe.tolerance
        return about

    def answer(self, examples: list[Example], batch_size: int, new_tokens: int) -> float:
        """Answer the questions in batches; return milliseconds per question."""
        begin = time.perf_counter()
        for at in range(0, len(examples), batch_size):
            questions = [example.question for example in examples[at : at + batch_size]]
            reasoning = self.reasoner.think(questions, self.num_iterations)
            self.reasoner.answer(reasoning, new_tokens)
        return 1000 * (time.perf_counter() - begin) / len(examples)


def settings_of(
    name: str, reasoner: Reasoner, iterations: Sequence[int], tolerances: Sequence[float]
) -> list[Setting]:
    """Return the settings of one model."""
    if not reasoner.method.iterates:
        return [Setting(name, reasoner, None)]
    if not reasoner.method.finds_iterations:  # it was trained for one T, and fails with others
        return [Setting(name, reasoner, reasoner.recipe.num_iterations)]
    return [Setting(name, reasoner, t) for t in iterations] + [
        Setting(name, reasoner.with_settings(tolerance=tolerance), "auto")
        for tolerance in tolerances
    ]


def accuracy(setting: Setting, examples: list[Example], new_tokens: int) -> dict[str, Any]:
    """Score a setting; return accuracies and mean passes, also by the number of steps."""
    found = evaluate(
        setting.reasoner, examples, 256, new_tokens, setting.num_iterations, rules=[HEADLINE]
    )
    passes: dict[int, list[int]] = {}
    for one in found.predictions:
        passes.setdefault(one["num_steps"], []).append(one["forward_passes"])
    by_steps = {str(steps): round(statistics.mean(n), 3) for steps, n in sorted(passes.items())}
    names = ("n", "accuracy", "accuracy_se", "accuracy_by_steps", "forward_passes", "unfinished")
    return {name: found.summary[name] for name in names} | {"forward_passes_by_steps": by_steps}


def main() -> None:
    """Measure, print each setting, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the validation problems")
    parser.add_argument("--iterations", type=int, nargs="*", default=ITERATIONS, help="each T")
    parser.add_argument("--tolerances", type=float, nargs="*", default=TOLERANCES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    named = dict(model.split("=", 1) for model in given.models)
    settings = [
        setting
        for name, checkpoint in named.items()
        for setting in settings_of(
            name, open_reasoner(checkpoint), given.iterations, given.tolerances
        )
    ]
    examples = generate("validation", max(given.problems, *TIMED.values()), seed=given.seed)
    results = []
    for setting in settings:
        scored = accuracy(setting, examples[: given.problems], given.new_tokens)
        results.append({**setting.describe(), **scored, "ms_per_question": {}})
        print({k: v for k, v in results[-1].items() if "steps" not in k}, flush=True)
    times: dict[tuple[int, int], list[float]] = {}
    for _ in range(given.rounds):
        for batch_size, count in TIMED.items():
            for index, setting in enumerate(settings):
                taken = setting.answer(examples[:count], batch_size, given.new_tokens)
                times.setdefault((index, batch_size), []).append(taken)
    for (index, batch_size), taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4)
        spread = {"median": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}
        results[index]["ms_per_question"][str(batch_size)] = spread
    told = {
        "what": "fixed T against auto, on generated validation problems; one thread; milliseconds "
        "per question by the number of questions answered at once, median and quartiles of rounds",
        "rounds": given.rounds,
        "timed_questions": {str(size): count for size, count in TIMED.items()},
        "results": results,
        **provenance(),
        "command": " ".join(("python benchmarks/iterations.py", *sys.argv[1:])),
    }
    write_json(given.output, told)
    print(f"written to {given.output}")


if __name__ == "__main__":
    main()
