"""`kava sweep`: a matrix of recipes and seeds, run here or as SLURM jobs (`kava.sweeps.slurm`).

OUTPUT/NAME-seedN/      a run folder (see kava.runs.folder), with `error.log` if it failed
OUTPUT/NAME-seedN.lock  exists while a process works on it
OUTPUT/sweep.json       the runs that were requested (see kava.sweeps.record)
OUTPUT/slurm/           jobs and their logs (see kava.sweeps.slurm)
OUTPUT/summary.json     a row per recipe, over its seeds

Finished work is not repeated, interrupted work is resumed, and a failure does not stop the other
runs. Several processes may work on one matrix, because each run is locked.
"""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved
from kava.recipe.load import load_recipe
from kava.recipe.schema import BackboneRecipe
from kava.report.rows import VALIDATION, TableRow, make_row
from kava.report.terminal import quickstart_table
from kava.runs.folder import read_result
from kava.sweeps import gpus, local, record, slurm
from kava.sweeps.attempt import (
    FAILED,
    FINISHED,
    LOCKED,
    SCORED,
    SKIPPED,
    SUBMITTED,
    TRAINED,
    Outcome,
    Run,
    Scoring,
    state,
)
from kava.system import assets, signals
from kava.system.environment import provenance
from kava.system.files import write_json
from kava.system.text import format_count, one_line, print_text

SUMMARY = "summary.json"


def plan(
    files: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str],
    output: Path,
    console: Console,
) -> list[Run]:
    """Return all runs, seed by seed, so that a comparison of all recipes is available early.

    Args:
        files: recipes, or patterns of them. Recipes of backbones (`kava pretrain`) are skipped,
            which is printed.
        seeds: if empty, each recipe's own seed is used.
        settings: overrides for all recipes, such as `train.steps=100`.

    Raises:
        KavaError: if a recipe cannot be read, a seed is among the settings, or there is nothing to
            run.
    """
    if any(setting.partition("=")[0] == "seed" for setting in settings):
        raise KavaError(
            "sweep: --set seed=... would give all runs the same seed; use --seeds",
            code="sweeps.seed-in-settings",
            key="--set",
        )
    kept: list[Path] = []
    for file in (file for given in files for file in assets.find_all(given)):
        if is_backbone(file):
            console.print(f"{file}: is a recipe of kava pretrain; skipped", highlight=False)
        elif file.resolve() in [other.resolve() for other in kept]:
            console.print(f"{file}: given twice; it is run once", highlight=False)
        else:
            kept.append(file)
    if not kept:
        raise KavaError("sweep: none of the files is a training recipe", code="sweeps.no-training")
    named = dict(zip(names(kept), kept, strict=True))
    runs = []
    for seed in dict.fromkeys(seeds) or (None,):
        for name, file in named.items():
            more = [] if seed is None else [f"seed={seed}"]
            recipe = load_resolved(file, [*settings, *more])
            runs.append(Run(name, recipe, output / f"{name}-seed{recipe.seed}"))
    return runs


def is_backbone(file: Path) -> bool:
    """Whether a recipe is one of `kava pretrain`.

    Raises:
        KavaError: if it is neither such a recipe nor one of a training run; the message says what a
            training recipe lacks.
    """
    try:
        load_recipe(file)
    except KavaError:
        try:
            load_recipe(file, kind=BackboneRecipe)
        except KavaError:
            load_recipe(file)
        return True
    return False


def names(files: Sequence[Path], separator: str = "-") -> list[str]:
    """Return a name for each file: its stem, with as many parent folders as make it unique.

    Args:
        separator: text between the parts of a name.

    Raises:
        KavaError: if paths differ only in a hyphen in place of a slash, or in their extensions.
    """
    found, clashing = assets.distinct_names([f.resolve().with_suffix("") for f in files], separator)
    if clashing:
        first = str(files[clashing[0]])
        raise KavaError(
            f"{first}: another recipe has the same name", code="sweeps.same-name", key=first
        )
    return found


def sweep(
    runs: Sequence[Run],
    scoring: Scoring,
    output: Path,
    console: Console,
    jobs: slurm.SubmitOptions | None = None,
) -> list[Outcome]:
    """Do every run, print a report, and write the summary.

    Args:
        jobs: options for submitting to SLURM; without it, the runs run here: one after the other,
            or one on each GPU if there are several. While SLURM still has some of the runs, no
            summary is written.

    Raises:
        KavaError: if tasks cannot be loaded, or SLURM refuses. Nothing has run then.
        Preempted: if SIGTERM was received while runs run here. A training run has then saved a
            checkpoint at a step boundary.
    """
    for run in runs:
        scoring.tasks_for(run.recipe)
    if jobs is None:
        record.add_to_plan(output, runs, scoring)
        with signals.listen_for([], signal.SIGTERM):
            if len(found := gpus.visible_gpus()) > 1 and len(runs) > 1:
                outcomes = gpus.run_all(found, runs, scoring, console)
            else:
                outcomes = local.run_all(runs, scoring, console)
    else:
        outcomes = slurm.submit(runs, scoring, output, jobs, console)
        if any(outcome.status in (SUBMITTED, LOCKED) for outcome in outcomes):
            count(outcomes, console)
            print_text(console, f"kava sweep --status {output} says how they get on")
            return outcomes
    return write_and_report(outcomes, scoring, output, console)


def write_and_report(
    outcomes: Sequence[Outcome], scoring: Scoring, output: Path, console: Console
) -> list[Outcome]:
    """Update the outcomes, write the summary and print a report; return the outcomes."""
    # A task may use another name for its rows (`rows`, `gsm8k_aug`).
    scored = dict.fromkeys(task.name for o in outcomes for task in scoring.tasks_for(o.run.recipe))
    before: Sequence[Outcome] = []
    while outcomes != before:  # includes what other processes finish meanwhile
        before, outcomes = outcomes, [_refresh(outcome, scoring) for outcome in outcomes]
        rows = collect(outcomes, tuple(scored) or (VALIDATION,))
        write_json(output / SUMMARY, summary(outcomes, rows))
    write_summary(outcomes, rows, output, console)
    return list(outcomes)


def write_summary(
    outcomes: Sequence[Outcome], rows: Sequence[TableRow], output: Path, console: Console
) -> None:
    """Write the summary, and print a report."""
    write_json(output / SUMMARY, summary(outcomes, rows))
    report(outcomes, rows, console)
    print_text(console, f"summary in {output / SUMMARY}")


def summary(outcomes: Sequence[Outcome], rows: Sequence[TableRow]) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    return {
        "seeds": list(dict.fromkeys(outcome.run.recipe.seed for outcome in outcomes)),
        "rows": rows,
        "runs": [
            {"run": o.run.folder.name, "outcome": o.status, "reason": o.reason} for o in outcomes
        ],
        **provenance(),
    }


def report(outcomes: Sequence[Outcome], rows: Sequence[TableRow], console: Console) -> None:
    """Print the tables, the number of runs by outcome, and what was not done and why."""
    for task in dict.fromkeys(row["task"] for row in rows):
        console.print("\nvalidation rows" if task == VALIDATION else f"\ntask {task}")
        console.print(quickstart_table([row for row in rows if row["task"] == task]))
    console.print()
    count(outcomes, console)


def count(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the number of runs by outcome, and the reasons for those that were not done."""
    counts = {what: sum(o.status == what for o in outcomes) for what in _OUTCOME_TEXTS}
    summary = ", ".join(
        f"{count} {_OUTCOME_TEXTS[what]}" for what, count in counts.items() if count
    )
    print_text(console, f"{format_count(len(outcomes), 'run')}: {summary}")
    for outcome in outcomes:
        if outcome.reason:
            print_text(console, f"  {outcome.status}  {outcome.run.folder.name}", outcome.reason)


_OUTCOME_TEXTS = {
    TRAINED: "trained",
    SCORED: "scored anew",
    SUBMITTED: "submitted",
    SKIPPED: "finished before",
    LOCKED: "locked by another process",
    FAILED: "failed",
}


def collect(outcomes: Sequence[Outcome], tasks: Sequence[str]) -> list[TableRow]:
    """Return a row per task and recipe; a run that failed or is locked counts as missing."""
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.run.name, []).append(outcome)
    rows = []
    for task in tasks:
        for name, group in by_name.items():
            results = {
                o.run.recipe.seed: read_result(o.run.folder) if o.is_usable else None for o in group
            }
            row = make_row(name, results, task, group[0].run.recipe)
            why = {str(o.run.recipe.seed): f"{o.status}: {o.reason}" for o in group if o.reason}
            rows.append({**row, "missing_because": why})
    return rows


def _refresh(outcome: Outcome, scoring: Scoring) -> Outcome:
    """Return the outcome of a run, updated if another process has finished it by now."""
    if outcome.status == LOCKED:
        try:
            if state(outcome.run, scoring.tasks_for(outcome.run.recipe))[0] == FINISHED:
                return Outcome(outcome.run, SKIPPED)
        except Exception as error:
            return Outcome(outcome.run, FAILED, one_line(error))
    return outcome
