"""`kava sweep --dry-run`: list what a sweep would do and what each run would cost."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kava.errors import KavaError
from kava.recipe import registry
from kava.runs.folder import read_result
from kava.sweeps import slurm
from kava.sweeps.attempt import FINISHED, RESUME, SCORE, START, Run, Scoring, state
from kava.sweeps.cost import Cost, Estimator
from kava.sweeps.gpus import visible_gpus
from kava.system import hub, lock
from kava.system.tables import terminal_table
from kava.system.text import format_count, print_text

LOCKED, REFUSED = "locked by another process", "would fail"


def list_runs(
    runs: Sequence[Run],
    scoring: Scoring,
    console: Console,
    jobs: slurm.SubmitOptions | None = None,
    output: Path = Path(),
) -> bool:
    """List what `sweep` would do, with the cost of each run; nothing is written or downloaded.

    Args:
        jobs: options of SLURM jobs, if the runs would be submitted; `output` then shows which jobs
            exist already.

    Returns:
        whether no run would fail.

    Raises:
        KavaError: if a task is unknown, or the array limit cannot be kept; or if jobs were
            submitted before and SLURM does not answer.
    """
    for name in scoring.names:
        registry.check("tasks", name)
    estimator, notes, left = Estimator(), Notes(), 0
    lines, states, to_submit = [], [], []
    queued = slurm.with_queue_state(runs, output) if jobs else ((run, "") for run in runs)
    with console.status("counting"):
        for run, in_queue in queued:
            now, why = (LOCKED, in_queue) if in_queue else _predict(run, scoring)
            if jobs and (unfit := _batch_problem(run, now)):
                now, why = REFUSED, unfit
            shared = jobs is not None and now != REFUSED
            cost = estimator.cost(run.recipe, run.recipe.resources.all_processes if shared else 1)
            if cost.error and now in (START, RESUME):
                now, why = REFUSED, cost.error
            if now in (START, RESUME, SCORE):
                to_submit.append(run)
            states.append(now)
            left += (cost.token_forwards or 0) * (now in (START, RESUME))
            notes.add(run.folder.name, why)
            for note in cost.notes:
                notes.add(run.name, note)
            lines.append((run.folder.name, now, *_cost_cells(cost)))
    headings = ("run", "state", "steps", "token-forwards")
    console.print(terminal_table(headings, lines, left_aligned=(0, 1)))
    counts = ", ".join(f"{states.count(now)} {now}" for now in dict.fromkeys(states))
    print_text(
        console,
        f"{format_count(len(runs), 'run')}: {counts}; {format_large_number(left)} token-forwards "
        "to go",
    )
    for group, limit in slurm.group_by_resources(to_submit, jobs.array_limit) if jobs else ():
        wanted = slurm.describe_resources(group[0].recipe.resources)
        print_text(console, f"{len(group)} as SLURM jobs, {limit} at a time; each {wanted}")
    if not jobs and len(found := visible_gpus()) > 1:
        print_text(console, f"{len(found)} GPUs of this machine, one run on each at a time")
    console.print()
    print_text(console, _LEGEND)
    for words in notes.lines():
        print_text(console, words)
    return REFUSED not in states


_LEGEND = (
    "token-forwards: columns that enter the backbone in the whole training, with pads, without "
    "validation\nmemory of a training step: kava bench memory RECIPE"
)


class Notes:
    """Collects notes, each once, with the names that it concerns."""

    def __init__(self) -> None:
        self._about: dict[str, list[str]] = {}

    def add(self, name: str, note: str) -> None:
        """Add a note about a name; an empty note is ignored."""
        if note and name not in self._about.setdefault(note, []):
            self._about[note].append(name)

    def lines(self) -> list[str]:
        """Return lines of the form `names: note`."""
        return [f"{', '.join(about)}: {note}" for note, about in self._about.items()]


def _predict(run: Run, scoring: Scoring) -> tuple[str, str]:
    """Return the state of a run, and the reason if it would not run."""
    if holder := lock.holder(run.lock):
        return LOCKED, holder
    try:
        with hub.offline_mode():
            return state(run, scoring.tasks_for(run.recipe))[0], ""
    except KavaError as error:
        why = str(error)
    try:
        now, _ = state(run, [])
    except KavaError:
        return REFUSED, why
    scores = (read_result(run.folder) or {}).get("scores", {})
    known = now == FINISHED and set(scoring.names) <= scores.keys()
    note = f"its tasks cannot be loaded here, so their number of rows is not checked: {why}"
    return (FINISHED if known else SCORE if now == FINISHED else now), note


def _batch_problem(run: Run, now: str) -> str:
    """Return why a run cannot be trained by the processes of its job; empty if it can."""
    try:
        slurm.check_batch(run, now)
    except KavaError as error:
        return str(error)
    return ""


def _cost_cells(cost: Cost) -> tuple[str, str]:
    return (
        "?" if cost.steps is None else f"{cost.steps:,}",
        "?" if cost.token_forwards is None else format_large_number(cost.token_forwards),
    )


def format_large_number(number: int) -> str:
    """Format a number as `12,345`, `1.23 million` or `45.6 billion`."""
    for size, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,}"
