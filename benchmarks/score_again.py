"""Score the runs of a sweep once more, one after the other with nothing else at work.

    OMP_NUM_THREADS=1 python benchmarks/score_again.py runs/quickstart-full --limit 1000

A sweep that shares its machine with other work measures accuracies that are right and times that
are not. Accuracies must come out as they were; a run where they do not is named, status 1.
`kava sweep` with the same arguments as before then makes the summary anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kava.data.tasks import load_task
from kava.evaluation.command import line, task_options
from kava.evaluation.score import score_run
from kava.reasoning.reasoner import Reasoner
from kava.runs.folder import read_result


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", default="synthetic")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    changed = 0
    for run in sorted(given.folder.glob("*-seed*/")):
        before = (read_result(run) or {}).get("scores", {}).get(given.task)
        if before is None:
            print(f"{run.name}: not scored on {given.task} yet, left out")
            continue
        reasoner = Reasoner.from_pretrained(run)
        options = task_options(reasoner.recipe, given.task, {})
        task = load_task(given.task, limit=given.limit, options=options)
        summary = score_run(reasoner, task, run).summary
        print(f"{run.name}: {line(given.task, summary)}", flush=True)
        if summary["accuracy"] != before["accuracy"]:
            print(f"{run.name}: accuracy was {before['accuracy']}")
            changed = 1
    return changed


if __name__ == "__main__":
    sys.exit(main())
