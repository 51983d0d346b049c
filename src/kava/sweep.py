"""`kava sweep`: a matrix of recipes and seeds, one training after the other on this machine.

OUTPUT/NAME-seedN/      a run folder (see kava.run); `error.log` there if it failed
OUTPUT/NAME-seedN.lock  while a process works on it
OUTPUT/summary.json     a row per recipe, over its seeds

What is done is not done again, what was interrupted goes on, and a failure does not stop the
rest. Several processes may work on one matrix: each run is locked.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kava import assets, lock
from kava import recipe as recipes
from kava.errors import KavaError
from kava.evaluate.command import line, task_options
from kava.model import Reasoner
from kava.provenance import provenance, write_json
from kava.recipe import BackboneRecipe, Recipe
from kava.report.rows import VALIDATION, Row, make_row
from kava.report.tables import duration, quickstart_table
from kava.resuming import has_checkpoint
from kava.run import (
    default_device,
    differences,
    holds_run,
    put_aside,
    read_result,
    score_run,
    train_run,
)
from kava.tasks import Task, load_task

SUMMARY, ERROR = "summary.json", "error.log"

# What is to do about a run, in the order in which it comes about.
START, RESUME, SCORE, DONE = "would run", "would resume", "would be scored", "done"
# What became of one.
TRAINED, SCORED, SKIPPED, ELSEWHERE, FAILED = "trained", "scored", "skipped", "elsewhere", "failed"


@dataclass(frozen=True)
class Run:
    """One training: a recipe with a seed. `name` is its recipe's name in this sweep."""

    name: str
    recipe: Recipe
    folder: Path

    @property
    def lock(self) -> Path:
        """Beside the folder, which may have to be renamed."""
        return self.folder.with_name(self.folder.name + ".lock")


@dataclass(frozen=True)
class Outcome:
    """What became of a run, with a reason where that is `failed` or `elsewhere`."""

    run: Run
    what: str
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether the run's result is the one that was asked for."""
        return self.what in (TRAINED, SCORED, SKIPPED)


@dataclass
class Scoring:
    """The tasks that every run is scored on.

    names: of tasks; may be empty.
    file: a local copy of the one task's rows.
    limit: only the first rows.
    """

    names: Sequence[str] = ()
    file: str | None = None
    limit: int | None = None
    _loaded: dict[str, list[Task]] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> list[Task]:
        """The tasks of one recipe; each different one is loaded once.

        Raises:
            KavaError: unknown task, rows that cannot be had.
        """
        options = {name: task_options(recipe, name, {}) for name in self.names}
        key = repr(options)
        if key not in self._loaded:
            self._loaded[key] = [
                load_task(name, file=self.file, limit=self.limit, options=options[name])
                for name in self.names
            ]
        return self._loaded[key]


def plan(
    files: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str],
    output: Path,
    console: Console,
) -> list[Run]:
    """All runs, seed by seed, so that a comparison of all recipes is there early.

    Args:
        files: recipes; those of backbones (`kava pretrain`) are left out, and that is said.
        seeds: without any, each recipe's own.
        settings: overrides for all, as `train.steps=100`.

    Raises:
        KavaError: a recipe that cannot be read, a seed among the settings, or nothing to run.
    """
    if any(setting.partition("=")[0] == "seed" for setting in settings):
        raise KavaError("sweep: --set seed=... would make all runs one; give --seeds")
    kept: list[Path] = []
    for given in files:
        file = assets.find(given)
        if is_backbone(file):
            console.print(f"{given}: makes a backbone (kava pretrain), left out", highlight=False)
        elif file.resolve() in [other.resolve() for other in kept]:
            console.print(f"{given}: named twice, taken once", highlight=False)
        else:
            kept.append(file)
    if not kept:
        raise KavaError("sweep: none of the files is the recipe of a training")
    named = dict(zip(names(kept), kept, strict=True))
    runs = []
    for seed in dict.fromkeys(seeds) or (None,):
        for name, file in named.items():
            more = [] if seed is None else [f"seed={seed}"]
            recipe = recipes.load_recipe(file, [*settings, *more])
            runs.append(Run(name, recipe, output / f"{name}-seed{recipe.seed}"))
    return runs


def is_backbone(file: Path) -> bool:
    """Whether a recipe is one of `kava pretrain`.

    Raises:
        KavaError: it is neither such a recipe nor one of a training; says what a training lacks.
    """
    try:
        recipes.load_recipe(file)
    except KavaError:
        try:
            recipes.load_recipe(file, kind=BackboneRecipe)
        except KavaError:
            recipes.load_recipe(file)
        return True
    return False


def names(files: Sequence[Path]) -> list[str]:
    """A name for each file: its stem, and as much of its folder as tells it from the others.

    Raises:
        KavaError: files whose paths differ only in where a hyphen is a slash.
    """
    parts = [file.resolve().with_suffix("").parts for file in files]
    taken = [1] * len(files)
    while True:
        found = ["-".join(p[-n:]) for p, n in zip(parts, taken, strict=True)]
        clashing = [i for i, name in enumerate(found) if found.count(name) > 1]
        longer = [i for i in clashing if taken[i] < len(parts[i]) - 1]
        if not clashing:
            return found
        if not longer:
            raise KavaError(f"sweep: {files[clashing[0]]}: another recipe has the same name")
        for i in longer:
            taken[i] += 1


def state(run: Run, tasks: Sequence[Task]) -> tuple[str, list[Task]]:
    """What is to do, and the tasks that are still to be scored.

    Raises:
        KavaError: the folder holds a run of another recipe, or something that cannot be read.
    """
    folder = run.folder
    if not holds_run(folder):
        return START, list(tasks)
    if different := differences(folder, run.recipe):
        raise KavaError(
            f"{folder}: holds a run of another recipe ({different}); give another --output, "
            "or move it away"
        )
    result = read_result(folder)
    if result is None:
        return (RESUME if has_checkpoint(folder) else START), list(tasks)
    missing = [task for task in tasks if not _is_scored(result, task)]
    return (SCORE if missing else DONE), missing


def _is_scored(result: dict[str, Any], task: Task) -> bool:
    score = result.get("scores", {}).get(task.name)
    asked = (len(task.examples), task.version)
    return score is not None and (score.get("n"), score.get("version")) == asked


def sweep(runs: Sequence[Run], scoring: Scoring, output: Path, console: Console) -> list[Outcome]:
    """Carry out every run, report, and write the summary.

    Raises:
        KavaError: tasks that cannot be had; nothing has run then.
    """
    # A task may give its rows a name of their own (`rows`, `gsm8k_aug`).
    scored = dict.fromkeys(task.name for run in runs for task in scoring.of(run.recipe))
    outcomes = []
    for number, run in enumerate(runs, 1):
        say = partial(say_plainly, console, f"[{number}/{len(runs)}] {run.folder}")
        outcomes.append(attempt(run, scoring, say, console))
        _free_memory()
    before: list[Outcome] = []
    while outcomes != before:  # what others finish while the summary is written belongs in it too
        before, outcomes = outcomes, [_looked_at_again(outcome, scoring) for outcome in outcomes]
        rows = collect(outcomes, tuple(scored) or (VALIDATION,))
        write_json(output / SUMMARY, summary(outcomes, rows))
    report(outcomes, rows, console)
    console.print(f"summary in {output / SUMMARY}", highlight=False)
    return outcomes


def attempt(run: Run, scoring: Scoring, say: Callable[[str], None], console: Console) -> Outcome:
    """One run; whatever goes wrong with it ends up in its outcome.

    A failure of the training or of its evaluation leaves its traceback in `error.log`.
    """
    try:
        with lock.hold(run.lock, console):
            outcome = _carry_out(run, scoring, say, console)
    except lock.Held as held:
        outcome = Outcome(run, ELSEWHERE, str(held))
    if outcome.what in (SKIPPED, ELSEWHERE, FAILED):
        say(f"{outcome.what}: {outcome.reason}" if outcome.reason else "done before, skipped")
    return outcome


def _carry_out(run: Run, scoring: Scoring, say: Callable[[str], None], console: Console) -> Outcome:
    try:
        todo, tasks = state(run, scoring.of(run.recipe))
    except Exception as error:  # what is in the folder is not this run's: nothing is written there
        return Outcome(run, FAILED, _in_a_line(error))
    if todo == DONE:
        return Outcome(run, SKIPPED)
    log = run.folder / ERROR
    try:
        if todo != SCORE:
            train(run, todo == RESUME, say, console)
        if tasks:
            score(run, tasks, say)
        log.unlink(missing_ok=True)
    except Exception as error:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(run, FAILED, _in_a_line(error))
    return Outcome(run, SCORED if todo == SCORE else TRAINED)


def train(run: Run, resume: bool, say: Callable[[str], None], console: Console) -> None:
    """Train, or go on with a training that was interrupted."""
    if not resume and holds_run(run.folder):
        put_aside(run.folder, console)  # cut off before its first checkpoint
    say(f"{'resuming' if resume else 'training'} {run.recipe.method}, seed {run.recipe.seed}")
    result = train_run(run.recipe, run.folder, console, resume)
    validated = (
        f", validation {result['validation_accuracy']} % of {result['validation_n']}"
        if result["validation_accuracy"] is not None
        else ""
    )
    say(f"trained {result['steps']} steps in {duration(result['train_seconds'])}{validated}")


def score(run: Run, tasks: Sequence[Task], say: Callable[[str], None]) -> None:
    """Evaluate the checkpoint on tasks."""
    reasoner = Reasoner.from_pretrained(run.folder, device=default_device())
    for task in tasks:
        say(line(task.name, score_run(reasoner, task, run.folder).summary))


def summary(outcomes: Sequence[Outcome], rows: Sequence[Row]) -> dict[str, Any]:
    """What `summary.json` holds."""
    return {
        "seeds": list(dict.fromkeys(outcome.run.recipe.seed for outcome in outcomes)),
        "rows": rows,
        "runs": [
            {"run": o.run.folder.name, "outcome": o.what, "reason": o.reason} for o in outcomes
        ],
        **provenance(),
    }


def report(outcomes: Sequence[Outcome], rows: Sequence[Row], console: Console) -> None:
    """The tables, how many runs came to what, and what was not done and why."""
    for task in dict.fromkeys(row["task"] for row in rows):
        console.print("\nvalidation rows" if task == VALIDATION else f"\ntask {task}")
        console.print(quickstart_table([row for row in rows if row["task"] == task]))
    counts = {what: sum(o.what == what for o in outcomes) for what in _TOLD}
    told = ", ".join(f"{count} {_TOLD[what]}" for what, count in counts.items() if count)
    say_plainly(console, f"\n{len(outcomes)} runs: {told}")
    for outcome in outcomes:
        if outcome.reason:
            say_plainly(console, f"  {outcome.what}  {outcome.run.folder.name}", outcome.reason)


_TOLD = {
    TRAINED: "trained",
    SCORED: "scored anew",
    SKIPPED: "done before",
    ELSEWHERE: "in other hands",
    FAILED: "failed",
}


def collect(outcomes: Sequence[Outcome], tasks: Sequence[str]) -> list[Row]:
    """A row per task and recipe; a run that failed or is in other hands counts as missing."""
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.run.name, []).append(outcome)
    rows = []
    for task in tasks:
        for name, group in by_name.items():
            results = {
                o.run.recipe.seed: read_result(o.run.folder) if o.counts else None for o in group
            }
            row = make_row(name, results, task, group[0].run.recipe)
            why = {str(o.run.recipe.seed): f"{o.what}: {o.reason}" for o in group if o.reason}
            rows.append({**row, "missing_because": why})
    return rows


def _looked_at_again(outcome: Outcome, scoring: Scoring) -> Outcome:
    """A run that was in other hands may be done by now."""
    if outcome.what == ELSEWHERE:
        try:
            if state(outcome.run, scoring.of(outcome.run.recipe))[0] == DONE:
                return Outcome(outcome.run, SKIPPED)
        except Exception as error:
            return Outcome(outcome.run, FAILED, _in_a_line(error))
    return outcome


def _free_memory() -> None:
    """A failed run's tensors hang on its traceback until they are collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_a_line(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return first if isinstance(error, KavaError) else f"{type(error).__name__}: {first}"


def say_plainly(console: Console, *parts: str) -> None:
    """Print `one: two`, whatever brackets and numbers are in it, as it is."""
    console.print(": ".join(parts), highlight=False, markup=False)
