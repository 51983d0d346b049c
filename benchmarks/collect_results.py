"""Copy what was measured into `results/`: recipes, metrics, results, predictions, the summary.

    python benchmarks/collect_results.py runs/quickstart-full results/quickstart
    python benchmarks/collect_results.py runs/gsm8k-small-kava results/gsm8k_small/kava --no-answers

The first is a folder of a sweep, and its runs take the place of those in the target; runs that its
summary does not name are left out. The second is one run. Predictions are kept without their
questions, which `id` and the task give again, and, where rows are not ours to pass on, without the
right answers. Checkpoints stay where they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

FILES = ("recipe.yaml", "metrics.jsonl", "result.json", "ablation.json", "ablation.png")


def collect_sweep(source: Path, target: Path, dropped: Sequence[str]) -> list[str]:
    """Replace `target`'s run folders by those of a sweep's summary; returns their names."""
    summary = json.loads((source / "summary.json").read_text(encoding="utf-8"))
    names = [run["run"] for run in summary["runs"]]
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*-seed*"):
        shutil.rmtree(old)
    for name in names:
        if (source / name / "result.json").is_file():
            collect_run(source / name, target / name, dropped)
    shutil.copy(source / "summary.json", target / "summary.json")
    return names


def collect_run(run: Path, copy: Path, dropped: Sequence[str]) -> None:
    """Copy one run; its predictions lose the fields in `dropped`."""
    shutil.rmtree(copy, ignore_errors=True)
    (copy / "predictions").mkdir(parents=True)
    for name in FILES:
        if (run / name).is_file():
            shutil.copy(run / name, copy / name)
    for file in (run / "predictions").rglob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = copy / "predictions" / file.relative_to(run / "predictions")
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("".join(_without(line, dropped) for line in lines), encoding="utf-8")


def _without(line: str, dropped: Sequence[str]) -> str:
    record = {key: value for key, value in json.loads(line).items() if key not in dropped}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--no-answers", action="store_true")
    given = parser.parse_args()
    dropped = ["question", "answer"] if given.no_answers else ["question"]
    if (given.source / "summary.json").is_file():
        found = collect_sweep(given.source, given.target, dropped)
        print(f"{len(found)} runs in {given.target}")
    elif (given.source / "result.json").is_file():
        collect_run(given.source, given.target, dropped)
        print(f"one run in {given.target}")
    else:
        sys.exit(f"{given.source}: neither a sweep (summary.json) nor a run (result.json)")


if __name__ == "__main__":
    main()
