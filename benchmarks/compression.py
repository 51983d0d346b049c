r"""When is a compressed cache worth distilling? One KaVa for each eviction, size, weight and seed.

    python benchmarks/compression.py --evictions none rkv random --latents 8 16 --weights 1 5 20

The backbone writes its steps as sentences (recipes/quickstart/sentences), of which the answer needs
the equations alone. Each combination is trained by the same recipe for 300 steps and scored on
generated validation problems, and with `--test` on test problems, which are for settings that were
chosen before. What the file already has is not trained again, and several processes may
fill one file. Writes results/quickstart/compression.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from kava.data.synthetic import generate
from kava.evaluation.answers import HEADLINE
from kava.evaluation.runner import evaluate
from kava.reasoning.evictions import Eviction, EvictionInputs
from kava.reasoning.methods._kv import KvDistillation
from kava.reasoning.open import open_reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.recipe.schema import Recipe
from kava.system.environment import provenance
from kava.system.files import write_json
from kava.training.run import train_run

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "results" / "quickstart" / "compression.json"
RUNS = ROOT / "runs" / "compression"
RECIPE = ROOT / "recipes" / "quickstart" / "sentences" / "kava.yaml"
#: Fewer than the recipe's 500, so that two cores carry the study. Each row is seen at most once.
STEPS, ROWS = 300, 19200
#: What each name of `--evictions` sets. `none` trains without L_KV.
EVICTIONS = {
    "none": ["kv.weight=0"],
    "rkv_0": ["kv.eviction.name=rkv", "kv.eviction.lambda=0"],
    "rkv": ["kv.eviction.name=rkv", "kv.eviction.lambda=0.1"],
    "rkv_1": ["kv.eviction.name=rkv", "kv.eviction.lambda=1"],
    **{
        name: [f"kv.eviction.name={name}"]
        for name in ("crop_right", "random", "evenly_spaced", "mean_pooling", "full", "equations")
    },
}


class Equations(Eviction):
    """Keep the tokens of the equations, and fill up with the last other tokens: an oracle.

    A token belongs to an equation if it is an operator or a number beside one.
    """

    operators: Tensor
    numbers: Tensor

    def score(self, inputs: EvictionInputs) -> Tensor:
        """Return 2 for the tokens of equations and at most 1 for others, [batch, heads, steps]."""
        tokens = inputs.tokens
        assert tokens is not None  # training always has them
        equation = self.in_equation(tokens)
        position = torch.linspace(0, 1, tokens.shape[1])
        scores = torch.where(equation, 2.0, position)
        return scores[:, None].expand(-1, inputs.keys.shape[1], -1)

    @classmethod
    def in_equation(cls, tokens: Tensor) -> Tensor:
        """Return whether each token belongs to an equation, [batch, steps]."""
        operator = torch.isin(tokens, cls.operators)
        beside = operator.roll(1, 1) | operator.roll(-1, 1)
        return operator | (torch.isin(tokens, cls.numbers) & beside)


def register_oracle(backbone: Path) -> None:
    """Register `equations` for the vocabulary of a backbone."""
    vocabulary = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False).get_vocab()
    by_sign = {i: token.lstrip("\u0120") for token, i in vocabulary.items()}
    Equations.operators = torch.tensor([i for i, sign in by_sign.items() if sign in set("+-*=")])
    Equations.numbers = torch.tensor([i for i, sign in by_sign.items() if re.match(r"\d+$", sign)])
    registry.register("evictions", "equations", Equations)


@contextmanager
def weight_over_time(how: str, steps: int) -> Iterator[None]:
    """Inside, the weight of L_KV `grows` from 0 to twice its value, or `falls` so, or is constant.

    A step is one micro-batch here, so that the calls of the loss are its steps.
    """
    own, calls = KvDistillation.weighted_loss, itertools.count()

    def weighted(self: KvDistillation, terms: dict[str, Tensor]) -> Tensor:
        done = next(calls) / steps
        return own(self, terms) * 2 * (done if how == "grows" else 1 - done)

    if how != "constant":
        KvDistillation.weighted_loss = weighted
    try:
        yield
    finally:
        KvDistillation.weighted_loss = own


def measure(recipe: Recipe, run: Path, split: str, problems: int) -> dict[str, Any]:
    """Train a recipe, or open what was trained, and score it on problems of its own form."""
    begin = time.process_time()
    if not (run / "checkpoint").exists():
        shutil.rmtree(run, ignore_errors=True)  # of a training that was interrupted
        trained = train_run(recipe, run, Console(quiet=True))
    else:
        trained = json.loads((run / "result.json").read_text())
    seconds = time.process_time() - begin
    reasoner = open_reasoner(str(run))
    examples = generate(split, problems, seed=int(split == "validation"), **recipe.data.options)
    found = evaluate(reasoner, examples, 250, recipe.eval.max_new_tokens, rules=[HEADLINE]).summary
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in losses if "student_ce" in row][-5:]
    means = {
        key: round(sum(row[key] for row in last) / len(last), 4)
        for key in ("student_ce", "kv")
        if last and all(key in row for row in last)
    }
    measured = ("n", "accuracy", "accuracy_se", "accuracy_by_steps", "forward_passes")
    return {
        **{key: found[key] for key in measured},
        "losses_at_the_end": means,
        "train_seconds": trained.get("train_seconds"),
        "processor_seconds": round(seconds, 1),
    }


def main() -> None:
    """Train and score what the file does not have."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--evictions", nargs="+", choices=EVICTIONS, required=True)
    parser.add_argument("--latents", nargs="+", type=int, default=[16])
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all")
    parser.add_argument(
        "--over-time",
        choices=("constant", "grows", "falls"),
        default="constant",
        help="weight of L_KV: linear from 0 to twice its value, or back",
    )
    parser.add_argument("--test", action="store_true", help="score on test problems")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    register_oracle(ROOT / "checkpoints" / "quickstart" / "sentences")
    combinations = [
        (eviction, latents, 0.0 if eviction == "none" else weight, seed)
        for seed in given.seeds
        for latents in given.latents
        for eviction in given.evictions
        for weight in (given.weights[:1] if eviction == "none" else given.weights)
    ]
    for eviction, latents, weight, seed in combinations:
        setting = {
            "eviction": eviction,
            "num_latents": latents,
            "weight": weight,
            "seed": seed,
            "set": given.set,
            "over_time": given.over_time,
            "split": "test" if given.test else "validation",
        }
        if any(setting.items() <= row.items() for row in read(given.output)):
            continue
        changes = [f"train.steps={STEPS}", f"data.train_rows={ROWS}", f"num_latents={latents}"]
        changes += [f"kv.weight={weight}", *EVICTIONS[eviction]]
        parts = [eviction, f"m{latents}", f"w{weight:g}", *given.set, given.over_time]
        recipe = load_resolved(RECIPE, [*changes, f"seed={seed}", *given.set])
        run = RUNS / "-".join([*parts, f"seed{seed}"])
        with weight_over_time(given.over_time, recipe.train.steps):
            row = setting | measure(recipe, run, setting["split"], given.problems)
        print({key: row[key] for key in (*setting, "accuracy", "losses_at_the_end")}, flush=True)
        add(given.output, row, __doc__.partition("\n")[0], order)


def add(file: Path, row: dict[str, Any], what: str, order: Callable) -> None:
    """Add a row to the file, which several processes may fill."""
    with FileLock(f"{file}.lock"):
        rows = sorted([*read(file), row], key=order)
        write_json(file, {"what": what, "rows": rows, **provenance()})


def read(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the file, if there is one."""
    return json.loads(file.read_text())["rows"] if file.exists() else []


def order(row: dict[str, Any]) -> tuple:
    """Return what rows are sorted by."""
    names = ("split", "num_latents", "eviction", "weight", "set", "over_time", "seed")
    return tuple(row[name] for name in names)


if __name__ == "__main__":
    main()
