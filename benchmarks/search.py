"""The same search for every method of the quickstart: learning rate, weights, latents, iterations.

    python benchmarks/search.py --methods kava lotus aligned

Each method has as many trials: its recipe's own values, and others that are drawn at random from
its grid below. A trial trains for 500 steps and is scored on generated validation problems; test
problems are not used. What the file already has is not trained again, and several processes may
fill one file. Writes results/quickstart/search.json.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path
from typing import Any

import torch
from compression import ROOT, add, measure, read

from kava.reasoning.resolve import load_resolved

FILE = ROOT / "results" / "quickstart" / "search.json"
RUNS = ROOT / "runs" / "search"
RATES = [1e-3, 2e-3, 4e-3]
LATENTS = {"num_latents": [12, 24, 35], "num_iterations": [3, 4, 6]}
#: For each method, its recipe and the values that are tried.
GRIDS: dict[str, tuple[str, dict[str, list[Any]]]] = {
    "cot": ("cot", {}),
    "no_cot": ("no_cot", {"train.weight_decay": [0, 0.01, 0.1]}),
    "icot": ("icot", {"method_options.tokens_per_epoch": [45, 60, 90]}),
    "coconut": ("coconut", {"method_options.epochs_per_stage": [0.1, 0.15]}),
    "codi": ("codi", {"num_latents": [6, 12], "codi.weight": [1, 5, 20]}),
    "mux": ("mux", {"num_latents": [6, 12], "multiplex.weight": [0.3, 1, 3]}),
    "simcot": ("simcot", {"num_latents": [6, 12], "method_options.step_weight": [0.3, 1, 3]}),
    "no_distillation": ("ablations/none", LATENTS),
    "pccot": ("pccot", {**LATENTS, "codi.weight": [1, 5, 20]}),
    "kava": ("kava", {**LATENTS, "kv.weight": [1, 5, 20]}),
    "kava_readout": ("kava_readout", {**LATENTS, "latent_readout.weight": [0.5, 1, 2]}),
    "lotus": (
        "lotus",
        {"latent_readout.weight": [0.2, 0.5, 1], "method_options.epochs_per_stage": [0.08, 0.12]},
    ),
    "aligned": ("aligned", {"latent_readout.weight": [0.5, 1, 2], "kv.weight": [1, 5, 20]}),
}
#: A quarter of the quickstart's, so that curricula take the same part of the training.
STEPS, ROWS = 500, 25000


def trials(method: str, count: int) -> list[list[str]]:
    """Return the changes of each trial: none, and `count` - 1 random points of the grid."""
    _, grid = GRIDS[method]
    grid = {"train.learning_rate": RATES, **grid}
    points = list(itertools.product(*([f"{key}={value}" for value in grid[key]] for key in grid)))
    drawn = random.Random(method).sample(points, min(count - 1, len(points)))
    return [[], *map(list, drawn)]


def main() -> None:
    """Train and score what the file does not have."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for method in given.methods:
        for number, changes in enumerate(trials(method, given.trials)):
            setting = {"method": method, "trial": number, "changes": changes}
            if any(setting.items() <= row.items() for row in read(given.output)):
                continue
            recipe = load_resolved(
                ROOT / "recipes" / "quickstart" / f"{GRIDS[method][0]}.yaml",
                [f"train.steps={STEPS}", f"data.train_rows={ROWS}", "eval.every=null", *changes],
            )
            run = RUNS / f"{method}-{number}"
            row = setting | measure(recipe, run, "validation", given.problems)
            print({**setting, "accuracy": row["accuracy"]}, flush=True)
            add(given.output, row, __doc__.partition("\n")[0], order)


def order(row: dict[str, Any]) -> tuple[str, int]:
    """Return what rows are sorted by."""
    return row["method"], row["trial"]


if __name__ == "__main__":
    main()
