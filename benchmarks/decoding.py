r"""Accuracy of chain of thought whose KV cache is compressed while it is written.

    python benchmarks/decoding.py equations=checkpoints/quickstart/backbone \
        sentences=checkpoints/quickstart/sentences

Each model is NAME=CHECKPOINT and answers generated test problems with its full cache, and with each
eviction and budget. Nothing is chosen by these numbers: settings are those of the command, and no
model is trained with compression. A model that the file has already is measured again, and the
others are kept. Writes results/bench/decoding.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from kava.data.synthetic import generate
from kava.evaluation.answers import HEADLINE
from kava.evaluation.runner import evaluate
from kava.inference.compressed import compressed, plan
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.system.environment import provenance
from kava.system.files import write_json
from kava.types import Example

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "decoding.json"
EVICTIONS = ("rkv_decoding", "attention", "cosine", "random")
BUDGETS = (32, 48, 64, 128)


def measure(
    reasoner: Reasoner,
    examples: list[Example],
    batch_size: int,
    new_tokens: int,
    eviction: str | None = None,
    **settings: int,
) -> dict[str, Any]:
    """Score a model under one eviction, or with its full cache."""
    torch.manual_seed(0)  # of the eviction `random`
    chosen = plan(eviction, **settings) if eviction else None
    begin = time.perf_counter()
    with compressed(reasoner.lm, chosen) if chosen else nullcontext() as log:
        found = evaluate(reasoner, examples, batch_size, new_tokens, rules=[HEADLINE]).summary
    names = ("n", "accuracy", "accuracy_se", "accuracy_by_steps", "forward_passes", "unfinished")
    return {
        "eviction": eviction,
        **settings,
        **{name: found[name] for name in names},
        "peak_columns": log.peak_columns if log else None,
        "uncompressed_columns": log.uncompressed_columns if log else None,
        "compressions": log.compressions if log else 0,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """Measure each model, print each row, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--evictions", nargs="+", default=EVICTIONS)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--buffer", type=int, default=8)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    given = parser.parse_args()
    examples = generate("test", given.problems, seed=0)
    results = json.loads(given.output.read_text())["results"] if given.output.exists() else {}
    for model in given.models:
        name, _, checkpoint = model.partition("=")
        reasoner = open_reasoner(checkpoint)
        budgets = {"buffer": given.buffer, "window": given.window}
        each = [(None, {})] + [
            (eviction, {"budget": budget, **budgets})
            for eviction in given.evictions
            for budget in given.budgets
        ]
        rows = []
        for eviction, settings in each:
            rows.append(
                measure(
                    reasoner, examples, given.batch_size, given.new_tokens, eviction, **settings
                )
            )
            print(name, {k: v for k, v in rows[-1].items() if k != "accuracy_by_steps"}, flush=True)
        command = " ".join(("python benchmarks/decoding.py", *sys.argv[1:]))
        results[name] = {"rows": rows, "command": command, **provenance()}
        told = {"what": __doc__.partition("\n")[0], "results": dict(sorted(results.items()))}
        write_json(given.output, told)
    print(f"written to {given.output}")


if __name__ == "__main__":
    main()
