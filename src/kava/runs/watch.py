"""`kava watch`: show a running training run in the terminal, from its folder.

It only reads `metrics.jsonl` and `recipe.yaml`, so any number of processes may watch a run, also
from another machine if the folder is shared.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from kava.errors import KavaError
from kava.runs.layout import METRICS, RECIPE, RESULT
from kava.runs.metrics import is_finite, is_number, read_records
from kava.system.tables import terminal_table
from kava.system.text import format_duration

_BARS = "▁▂▃▄▅▆▇█"
WIDTH = 20
#: Keys of a record that are not measured quantities.
_HIDDEN = {"step", "epoch", "validation_n"}
FIRST_METRICS = ("loss", "student_ce", "teacher_ce", "codi", "kv")


@dataclass(frozen=True)
class State:
    """The contents of a run folder at one moment.

    records: the records of the log, in order.
    steps: of the whole run; None if the recipe counts epochs and nothing else tells the number yet.
    age: seconds since the log was last written.
    """

    run: Path
    records: list[dict[str, Any]]
    steps: int | None
    age: float
    finished: bool

    @property
    def step(self) -> int:
        """Return the last step that was logged."""
        return max((record["step"] for record in self.records), default=0)


def read_state(run: Path) -> State:
    """Read a run folder.

    Raises:
        KavaError: if it is not a run folder, or its log cannot be read as one.
    """
    file = run / METRICS
    if not file.is_file():
        raise KavaError(
            f"{run}: nothing to watch, because {METRICS} was not found; training writes this file",
            code="runs.nothing-to-watch",
            key=str(run),
        )
    records = read_records(file)
    age = max(0.0, time.time() - file.stat().st_mtime)
    return State(run, records, _steps(run, records), age, (run / RESULT).is_file())


def watch(run: Path, console: Console, once: bool = False, every: float = 1.0) -> None:
    """Show a run until it ends, or show it once.

    Raises:
        KavaError: if `run` is not a run folder.
    """
    state = read_state(run)
    if once or state.finished or not console.is_terminal:
        console.print(view(state))
        return
    from rich.live import Live

    with Live(view(state), console=console, refresh_per_second=4) as live:
        while not state.finished:
            time.sleep(every)
            state = read_state(run)
            live.update(view(state))


def view(state: State) -> RenderableType:
    """Show the progress and, for each logged quantity, its last value, range and course."""
    from rich.console import Group
    from rich.text import Text

    lines = []
    for key in _keys(state.records):
        logged = [record[key] for record in state.records if is_number(record.get(key))]
        values = [value for value in logged if is_finite(value)]
        name = f"{key}, log" if is_wide(values) else key
        ends = map(_format_value, (min(values), max(values))) if values else ("-", "-")
        lines.append((name, _format_value(logged[-1]), *ends, sparkline(values)))
    table = terminal_table(("", "last", "lowest", "highest", "course"), lines, left_aligned=(0, 4))
    return Group(Text(headline(state), style="bold"), table)


def headline(state: State) -> str:
    """Describe the current step, and the time left at the pace of the last steps."""
    total = f" of {state.steps:,}" if state.steps else ""
    words = f"{state.run}: step {state.step:,}{total}"
    if state.finished:
        return f"{words}, finished"
    left = seconds_left(state)
    more = f", about {format_duration(left)} left" if left is not None else ""
    quiet = f"; nothing logged for {format_duration(state.age)}" if state.age > 60 else ""
    return words + more + quiet


def seconds_left(state: State) -> float | None:
    """Estimate the seconds left from the logged throughput.

    None if no throughput was logged, or the number of steps is not known.
    """
    timed = [r for r in state.records if is_finite(r.get("seconds_per_step"))]
    if not timed or state.steps is None:
        return None
    last = timed[-10:]
    # The first step is logged separately and includes setup, so it does not count.
    recent = [record["seconds_per_step"] for record in last if record["step"] > 1 or len(last) == 1]
    return (state.steps - state.step) * sum(recent) / len(recent)


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Draw the means of equal parts of the values as bars of eight heights; see `is_wide`."""
    parts = min(width, len(values))
    edges = [round(i * len(values) / parts) for i in range(parts + 1)] if parts else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if is_wide(values):
        means = [math.log(mean) for mean in means]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, int(8 * (value - low) / span))] for value in means)


def is_wide(values: Sequence[float]) -> bool:
    """Whether to use a logarithmic scale: values are positive and span more than a factor of 50."""
    return min(values, default=0) > 0 and max(values) / min(values) > 50


def _keys(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the logged quantities, losses first, without duplicates."""
    found = [key for record in records for key in record if key not in _HIDDEN]
    known = list(dict.fromkeys(key for key in found if _has_value(records, key)))
    return [key for key in FIRST_METRICS if key in known] + [
        key for key in known if key not in FIRST_METRICS
    ]


def _has_value(records: Sequence[dict[str, Any]], key: str) -> bool:
    return any(is_number(record.get(key)) for record in records)


def _steps(run: Path, records: Sequence[dict[str, Any]]) -> int | None:
    """Return the number of steps of the whole run.

    It comes from the recipe, either directly or as its epochs times the steps per epoch in the log.
    """
    from kava.recipe.load import load_recipe
    from kava.recipe.schema import BackboneRecipe, Recipe

    file = run / RECIPE
    if not file.is_file():
        return None
    try:
        train = load_recipe(file, kind=Recipe, saved=True).train
    except KavaError:
        train = load_recipe(file, kind=BackboneRecipe, saved=True).train
    if train.steps is not None:
        return train.steps
    last = next(
        (r for r in reversed(records) if is_finite(r.get("epoch")) and r["epoch"] > 0), None
    )
    if last is None:
        return None
    # A partial step counts as a step; three decimals are coarser than the error of the division.
    return math.ceil(round(train.epochs * last["step"] / last["epoch"], 3))


def _format_value(value: float) -> str:
    return f"{value:.4g}"
