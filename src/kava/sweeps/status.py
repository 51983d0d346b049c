"""`kava sweep --status`: show the state of each run, from its folder and SLURM's queue.

waiting    not started           running    a process or a job works on it
done       trained and scored    failed     it ended with an error, or its job without a result
preempted  stopped early; it resumes when its job starts again, or with `kava sweep`
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.errors import KavaError
from kava.report.rows import VALIDATION
from kava.runs import watch
from kava.runs.folder import differences, holds_run, read_result
from kava.sweeps import record
from kava.sweeps import sweep as sweeps
from kava.sweeps.attempt import ERROR_FILE, SKIPPED, Outcome, is_scored
from kava.sweeps.record import PlannedRun, SlurmJob
from kava.system import hub, lock, slurm_queue
from kava.system.text import format_count, print_columns, print_text

PENDING, RUNNING, FINISHED = "pending", "running", "finished"
FAILED, PREEMPTED = "failed", "preempted"
#: Exit status: all runs are finished; some failed; none failed, but some are not finished.
ALL_FINISHED, SOME_FAILED, UNFINISHED = 0, 1, 3


@dataclass(frozen=True)
class RunStatus:
    """The state of one run.

    step, steps, loss: as last logged; None if nothing was logged, or the length is not known yet.
    job, log: its job and log file, if any.
    reason: for a failed run, the last line that it printed.
    """

    name: str
    state: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    job: str = ""
    log: str = ""
    reason: str = ""


def show(runs: Sequence[PlannedRun], output: Path, console: Console) -> int:
    """Print a line for each run, and return the exit status.

    If all runs are finished and the summary does not show it yet, the summary is written.

    Raises:
        KavaError: if SLURM does not answer. A run whose folder cannot be read counts as failed.
    """
    lines = read_statuses(runs, output)
    table = [("run", "state", "step", "loss", "job", "log"), *map(_cells, lines)]
    print_columns(console, table)
    for line in lines:
        if line.reason:
            print_text(console, f"{line.name} {line.state}", line.reason)
    names = [line.state for line in lines]
    order = (FINISHED, RUNNING, PENDING, PREEMPTED, FAILED)
    counts = ", ".join(f"{names.count(name)} {name}" for name in order if name in names)
    print_text(console, f"{format_count(len(lines), 'run')}: {counts}")
    if set(names) == {FINISHED}:
        _write_missing_summary(runs, output, console)
        return ALL_FINISHED
    return SOME_FAILED if FAILED in names else UNFINISHED


def read_statuses(runs: Sequence[PlannedRun], output: Path) -> list[RunStatus]:
    """Return the current state of each run."""
    jobs = record.jobs(output)
    known = [jobs.get(one.run.folder.name) for one in runs]
    states = slurm_queue.states(job.job for job in known if job and job.cluster == "slurm")
    return [
        _line(one, job, states.get(job.job) if job else None, output)
        for one, job in zip(runs, known, strict=True)
    ]


def _line(asked: PlannedRun, job: SlurmJob | None, in_queue: str | None, output: Path) -> RunStatus:
    run = asked.run
    log = str(output / record.FOLDER / job.log) if job else ""
    if not job and (run.folder / ERROR_FILE).is_file():
        log = str(run.folder / ERROR_FILE)
    try:
        step, steps, loss = _progress(asked)
        state, why = _state(asked, job, in_queue, log)
    except KavaError as error:  # concerns this folder only; the other runs are still shown
        step, steps, loss = None, None, None
        state, why = FAILED, str(error)
    return RunStatus(run.folder.name, state, step, steps, loss, job.job if job else "", log, why)


def _state(
    asked: PlannedRun, job: SlurmJob | None, in_queue: str | None, log: str
) -> tuple[str, str]:
    folder = asked.run.folder
    if holds_run(folder) and (different := differences(folder, asked.run.recipe)):
        return FAILED, f"its folder holds a run of another recipe ({different})"
    result = read_result(folder)
    if slurm_queue.is_active(in_queue) and in_queue not in slurm_queue.WAITING_STATES:
        return RUNNING, ""
    if lock.holder(asked.run.lock):
        return RUNNING, ""
    if result is not None and _is_scored(asked, result):
        return FINISHED, ""
    if slurm_queue.is_active(in_queue):
        return (PREEMPTED if holds_run(folder) else PENDING), ""
    if (folder / ERROR_FILE).is_file():
        return FAILED, _last_line(folder / ERROR_FILE)
    if in_queue == "PREEMPTED":
        return PREEMPTED, ""
    if job and job.cluster == "slurm":
        end = f"job {job.job} ended without a result"
        named = f"{end} ({in_queue})" if in_queue else end
        return FAILED, ": ".join(filter(None, [named, _last_line(Path(log))]))
    return (PREEMPTED if holds_run(folder) else PENDING), ""


def _is_scored(asked: PlannedRun, result: dict[str, Any]) -> bool:
    """Whether the requested tasks are scored, on the rows that they have now.

    If their rows cannot be loaded without the Hub, scores of these tasks count that are present by
    name and have no more rows than the limit.
    """
    try:
        with hub.offline_mode():
            tasks = asked.scoring.tasks_for(asked.run.recipe)
    except KavaError:
        scores = result.get("scores", {})
        names, limit = asked.scoring.found_in(scores), asked.scoring.limit
        return names is not None and all(
            limit is None or scores[name].get("n", 0) <= limit for name in names
        )
    return all(is_scored(result, task) for task in tasks)


def _progress(asked: PlannedRun) -> tuple[int | None, int | None, float | None]:
    """Return the step, the total number of steps, and the last loss."""
    result = read_result(asked.run.folder) or {}
    step = steps = result.get("steps")
    try:
        state = watch.read_state(asked.run.folder)
    except KavaError:  # nothing was logged
        return step, steps or asked.run.recipe.train.steps, None
    losses = [record["loss"] for record in state.records if "loss" in record]
    if steps is None:
        step, steps = state.step, state.steps
    return step, steps, losses[-1] if losses else None


def _write_missing_summary(asked: Sequence[PlannedRun], output: Path, console: Console) -> None:
    scorings = {
        (tuple(one.scoring.names), tuple(one.scoring.files), one.scoring.limit): one.scoring
        for one in asked
    }
    if len(scorings) > 1:
        print_text(console, "no summary: the runs are scored on different tasks or rows")
        return
    (scoring,) = scorings.values()
    outcomes = [Outcome(one.run, SKIPPED) for one in asked]
    results = [read_result(one.run.folder) or {} for one in asked]
    scored = [scoring.found_in(result.get("scores", {})) or [] for result in results]
    names = dict.fromkeys(name for part in scored for name in part)
    rows = sweeps.collect(outcomes, tuple(names) or (VALIDATION,))
    if rows != _read_summary(output):
        sweeps.write_summary(outcomes, rows, output, console)


def _read_summary(output: Path) -> Any:
    try:
        return json.loads((output / sweeps.SUMMARY).read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError):
        return None


def _last_line(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _cells(line: RunStatus) -> tuple[str, ...]:
    total = "" if line.steps is None else f" of {line.steps:,}"
    step = f"{line.step or 0:,}{total}"
    loss = "" if line.loss is None else f"{line.loss:.4g}"
    return line.name, line.state, step, loss, line.job, line.log
