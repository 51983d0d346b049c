"""Read committed predictions once more, by every rule there is now.

    python benchmarks/read_again.py results/quickstart/*
    python benchmarks/read_again.py results/gsm8k_small/* --file gsm8k_test.jsonl

A rule that is newer than a run lacks in what the run wrote. This writes `correct` of each row of
`predictions/*.jsonl` and `accuracy_by_rule` of `result.json` anew, and nothing else. A rule that
was there must say what it said: if it does not, its file is named and left as it was, status 1.
Right answers that a committed row leaves out come from its task, or `--file`, a local copy of it.
Folders without predictions are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kava.data.tasks import load_task
from kava.evaluation.answers import accuracy_by_rule, score
from kava.runs.folder import read_result
from kava.runs.layout import RESULT
from kava.system.files import write_json


def read_again(run: Path, task_file: str | None) -> list[str]:
    """Update one run; returns what moved, in words."""
    moved: list[str] = []
    result = read_result(run) or {}
    for file in sorted(run.glob("predictions/*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        gold = {row["id"]: row["answer"] for row in rows if "answer" in row}
        if len(gold) < len(rows):
            gold = {e.id: e.answer for e in load_task(file.stem, file=task_file).examples}
        now = [score(row["prediction"], gold[row["id"]]) for row in rows]
        before = accuracy_by_rule([row["correct"] for row in rows])
        told = ", ".join(f"{rule} {value}" for rule, value in accuracy_by_rule(now).items())
        changed = sum(
            {**correct, **row["correct"]} != correct for row, correct in zip(rows, now, strict=True)
        )
        scores = result["scores"][file.stem]
        if changed or scores["accuracy_by_rule"] != before:
            moved.append(f"{file}: {changed} rows read otherwise than before; left as it was")
            continue
        pairs = zip(lines, rows, now, strict=True)
        text = "".join(_with(line, row, correct) for line, row, correct in pairs)
        file.write_text(text, encoding="utf-8")
        scores["accuracy_by_rule"] = accuracy_by_rule(now)
        print(f"{file}: {len(rows):,} rows; {told}", flush=True)
    if result:
        write_json(run / RESULT, result)
    return moved


def _with(line: str, row: dict[str, Any], correct: dict[str, bool]) -> str:
    """The line in the form in which it was written (compact or not), with another `correct`."""
    compact = (",", ":") if line.startswith('{"id":"') else None
    row = {**row, "correct": correct}
    return json.dumps(row, ensure_ascii=False, separators=compact) + "\n"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--file")
    given = parser.parse_args()
    runs = [run for run in given.runs if (run / "predictions").is_dir()]
    moved = [words for run in runs for words in read_again(run, given.file)]
    print("\n".join(moved) or "no rule that was there before says anything else now")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main())
