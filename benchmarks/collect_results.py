"""Copy what a sweep measured into `results/`: recipes, metrics, results, predictions, the summary.

    python benchmarks/collect_results.py runs/quickstart-full results/quickstart

Predictions are kept without their questions, which `id` and the task give again. Checkpoints stay
where they are. Runs that the summary does not name are left out.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def collect(source: Path, target: Path) -> list[str]:
    """Replace `target`'s run folders by those of a sweep's summary; returns their names."""
    summary = json.loads((source / "summary.json").read_text(encoding="utf-8"))
    names = [run["run"] for run in summary["runs"]]
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*-seed*"):
        shutil.rmtree(old)
    for name in names:
        run, copy = source / name, target / name
        (copy / "predictions").mkdir(parents=True)
        for file in ("recipe.yaml", "metrics.jsonl", "result.json"):
            shutil.copy(run / file, copy / file)
        for file in (run / "predictions").glob("*.jsonl"):
            text = "".join(map(_without_question, file.read_text(encoding="utf-8").splitlines()))
            (copy / "predictions" / file.name).write_text(text, encoding="utf-8")
    shutil.copy(source / "summary.json", target / "summary.json")
    return names


def _without_question(line: str) -> str:
    record = json.loads(line)
    record.pop("question", None)
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    found = collect(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{len(found)} runs in {sys.argv[2]}")
