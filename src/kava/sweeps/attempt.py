"""One run of a sweep: decide whether to train, resume or score it, and do so.

Finished work is not repeated, and interrupted work is resumed. A run is locked while a process
works on it, on any machine. The processes of one job work on it together; the main process locks,
decides and writes.
"""

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from kava.data import rows_hash
from kava.data.tasks import Task, load_task, local_copies
from kava.errors import KavaError
from kava.evaluation.command import line, task_options
from kava.evaluation.score import score_run
from kava.reasoning.open import device_line
from kava.reasoning.reasoner import Reasoner
from kava.recipe.schema import Recipe
from kava.runs.folder import back_up, check_free, differences, holds_run, read_result
from kava.runs.resume import has_checkpoint
from kava.system import distributed, links, lock, signals
from kava.system.environment import default_device
from kava.system.files import write_whole
from kava.system.text import format_duration, one_line
from kava.training.run import train_run

T = TypeVar("T")
ERROR_FILE = "error.log"

# What a run needs, in the order of its progress.
START, RESUME, SCORE, FINISHED = "planned", "to resume", "to score", "finished"
# The outcome of a run.
TRAINED, SCORED, SKIPPED, LOCKED, FAILED = "trained", "scored", "skipped", "locked", "failed"
SUBMITTED = "submitted"


@dataclass(frozen=True)
class Run:
    """One training run: a recipe with a seed. `name` is the name of its recipe in this sweep."""

    name: str
    recipe: Recipe
    folder: Path

    @property
    def lock(self) -> Path:
        """Return the path of the lock, next to the folder, because the folder may be renamed."""
        return self.folder.with_name(self.folder.name + ".lock")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, with a reason if it is `failed` or `locked`."""

    run: Run
    status: str
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether the run is finished and its result is used in the summary."""
        return self.status in (TRAINED, SCORED, SKIPPED)


@dataclass
class Scoring:
    """The tasks that every run is scored on.

    names: names of tasks; may be empty.
    files: local copies of the tasks' rows, one for each task in the same order; may be empty.
    limit: use only the first `limit` rows.

    Raises:
        KavaError: if there is not one file for each task.
    """

    names: Sequence[str] = ()
    files: Sequence[str] = ()
    limit: int | None = None
    _loaded: dict[str, list[Task]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._copies = local_copies("sweep", self.names, self.files)

    def tasks_for(self, recipe: Recipe) -> list[Task]:
        """Return the tasks of one recipe; each distinct set of options is loaded once.

        Raises:
            KavaError: if a task is unknown, or its rows cannot be loaded.
        """
        options = {name: task_options(recipe, name, {}) for name in self.names}
        key = repr(options)
        if key not in self._loaded:
            self._loaded[key] = [
                load_task(name, file=file, limit=self.limit, options=options[name])
                for name, file in zip(self.names, self._copies, strict=True)
            ]
        return self._loaded[key]

    def found_in(self, scores: Iterable[str]) -> list[str] | None:
        """Return the names under which a result has scores of these tasks; None if one is missing.

        A task may append a name to its own for its rows (`rows-mine`).
        """
        found = [
            [s for s in scores if s == name or s.startswith(f"{name}-")] for name in self.names
        ]
        return [name for part in found for name in part] if all(found) else None


def state(run: Run, tasks: Sequence[Task]) -> tuple[str, list[Task]]:
    """Return the next action for a run, and the tasks that are still to be scored.

    Raises:
        KavaError: if the folder contains a run of another recipe, other files that a run would
            overwrite, or something that cannot be read.
    """
    folder = run.folder
    if not holds_run(folder):
        check_free(folder, run.recipe)
        return START, list(tasks)
    if different := differences(folder, run.recipe):
        raise KavaError(
            f"{folder}: contains a run of another recipe ({different}); choose another "
            "--output, or move the folder",
            code="sweeps.folder-of-another-recipe",
            key=str(folder),
        )
    result = read_result(folder)
    if result is None:
        return (RESUME if has_checkpoint(folder) else START), list(tasks)
    missing = [task for task in tasks if not is_scored(result, task)]
    return (SCORE if missing else FINISHED), missing


def is_scored(result: dict[str, Any], task: Task) -> bool:
    """Whether a result has a score of exactly these rows.

    A score from a version that did not record the hash of the rows is compared by number and
    version only.
    """
    score = result.get("scores", {}).get(task.name)
    if score is None:
        return False
    wanted = (len(task.examples), task.version, rows_hash(task.examples))
    return (score.get("n"), score.get("version"), score.get("sha256", wanted[2])) == wanted


def attempt(run: Run, scoring: Scoring, log: Callable[[str], None], console: Console) -> Outcome:
    """Train and score a run as far as needed; any error is returned in the outcome.

    If training or evaluation fails, the traceback is written to `error.log`.

    Raises:
        Preempted: if the process was asked to stop (`kava.system.signals`); the run can be resumed.
    """
    try:
        with lock.acquire_for_all(run.lock):
            outcome = _run_attempt(run, scoring, log, console)
    except lock.LockHeld as held:
        outcome = Outcome(run, LOCKED, str(held))
    if outcome.status in (SKIPPED, LOCKED, FAILED):
        log(
            f"{outcome.status}: {outcome.reason}" if outcome.reason else "already finished; skipped"
        )
    return outcome


def _run_attempt(
    run: Run, scoring: Scoring, say: Callable[[str], None], console: Console
) -> Outcome:
    try:
        tasks = distributed.main_rank_first(partial(_as_kava_error, scoring.tasks_for, run.recipe))
        todo, missing = distributed.from_main_rank(
            partial(_as_kava_error, _state_with_indices, run, tasks)
        )
    except KavaError as error:  # the folder is not this run's: write nothing there
        return Outcome(run, FAILED, str(error))
    if todo == FINISHED:
        return Outcome(run, SKIPPED)
    log = run.folder / ERROR_FILE
    try:
        signals.stop_if_requested()
        if todo != SCORE:
            train(run, todo == RESUME, say, console)
        if missing:
            score(run, [tasks[number] for number in missing], say)
        distributed.on_main_rank(lambda: log.unlink(missing_ok=True))
    except Exception as error:
        return Outcome(run, FAILED, _log_error(error, log))
    return Outcome(run, SCORED if todo == SCORE else TRAINED)


def _as_kava_error(act: Callable[..., T], *given: Any) -> T:
    """Return what `act` returns; turn any error into one line, to send to other processes.

    Raises:
        KavaError: for any error.
    """
    try:
        return act(*given)
    except KavaError as error:
        raise KavaError(one_line(error), code=error.code, key=error.key) from error
    except Exception as error:
        raise KavaError(one_line(error), code="sweeps.failed", key=type(error).__name__) from error


def _state_with_indices(run: Run, tasks: Sequence[Task]) -> tuple[str, list[int]]:
    """Return the result of `state`, with tasks as indices; a folder that is a link is an error."""
    links.check(run.folder)
    todo, missing = state(run, tasks)
    return todo, [i for i, task in enumerate(tasks) if any(task is one for one in missing)]


def _log_error(error: Exception, log: Path) -> str:
    """Return the error as one line, and write its traceback to `log`, once for all processes."""
    text, line = traceback.format_exc(), one_line(error)
    if distributed.is_peer_failure(error):
        line = f"another of the {distributed.world_size()} processes is gone"
        text = f"{text}{line}\n"

    def write() -> None:
        write_whole(log, text)

    distributed.once_across_ranks(write)
    return line


def train(run: Run, resume: bool, log: Callable[[str], None], console: Console) -> None:
    """Train a run, or resume a training that was interrupted."""

    def make_room() -> None:
        if not resume and holds_run(run.folder):
            back_up(run.folder, console)  # interrupted before its first checkpoint

    distributed.on_main_rank(make_room)
    log(f"{'resuming' if resume else 'training'} {run.recipe.method}, seed {run.recipe.seed}")
    with signals.defer_signals():
        result = train_run(run.recipe, run.folder, console, resume)
    validated = (
        f", validation {result['validation_accuracy']} % of {result['validation_n']}"
        if result["validation_accuracy"] is not None
        else ""
    )
    log(f"trained {result['steps']} steps in {format_duration(result['train_seconds'])}{validated}")


def score(run: Run, tasks: Sequence[Task], log: Callable[[str], None]) -> None:
    """Evaluate the checkpoint of a run on tasks."""
    device = default_device()
    reasoner = distributed.main_rank_first(
        lambda: Reasoner.from_pretrained(run.folder, device=device)
    )
    log(device_line(reasoner, reasoner.recipe.eval.batch_size))
    for task in tasks:
        signals.stop_if_requested()
        log(line(task.name, score_run(reasoner, task, run.folder).summary))
