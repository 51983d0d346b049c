"""The command `kava plot`: draw all plots that the results of some run folders allow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kava.recipe import schema
from kava.report.plots import (
    Point,
    accuracy_against_passes,
    describe_spread,
    lines,
    loss_parts,
    spread,
)
from kava.report.results import Group, check_column
from kava.report.rows import VALIDATION, TableRow
from kava.report.table import group_label

LINES = 9  # maximum number of lines in one plot of training curves
SWEEPS = {"num_latents": "Latent tokens M", "num_iterations": "Iterations T"}


def draw(groups: Sequence[Group], tasks: Sequence[str], folder: Path) -> Iterator[str]:
    """Draw all possible plots; yield for each the path written, or why it was not drawn.

    Args:
        tasks: the tasks to draw; if empty, all tasks that any run was scored on.

    Raises:
        KavaError: two runs were not scored alike on a task.
    """
    tasks = list(tasks) or list(dict.fromkeys(task for group in groups for task in group.tasks))
    for task in tasks or [VALIDATION]:
        check_column(groups, task)
        rows = [(group, group.row(task)) for group in groups]
        rows = [(group, row) for group, row in rows if row["accuracy"] is not None]
        end = f"-{task}" if len(tasks) > 1 else ""
        if not rows:
            yield f"no run was scored on '{task}': nothing to draw for it"
            continue
        yield _passes(rows, folder / f"accuracy_against_passes{end}.png")
        yield _by_steps(rows, folder / f"accuracy_by_steps{end}.png")
        for key in SWEEPS:
            yield _sweep(rows, key, folder / f"{key}{end}.png")
    yield from _curves(groups, folder)


def _passes(rows: list[tuple[Group, TableRow]], path: Path) -> str:
    known = [row for _, row in rows if row["forward_passes"] is not None]
    if not known:
        return f"{path.name} not drawn: forward passes were not counted"
    return f"written {accuracy_against_passes(known, path)}"


def _by_steps(rows: list[tuple[Group, TableRow]], path: Path) -> str:
    series = {
        _name(group): [(float(k), value, None) for k, value in row["accuracy_by_steps"].items()]
        for group, row in rows
        if len(row["accuracy_by_steps"]) > 1
    }
    if not series:
        return f"{path.name} not drawn: the task's rows do not differ in their number of steps"
    title = f"Accuracy by the length of the written solution\n{_count_text(rows)}"
    return f"written {lines(series, path, 'Steps of the written solution', title)}"


def _sweep(rows: list[tuple[Group, TableRow]], key: str, path: Path) -> str:
    """Draw a line for each set of runs that differ only in `key`."""
    families: dict[str, list[tuple[Group, TableRow]]] = {}
    for group, row in rows:
        if group.recipe is not None and row[key] is not None:
            rest = schema.dump(group.recipe.model_copy(update={key: 1, "seed": 0}))
            families.setdefault(rest, []).append((group, row))
    series: dict[str, list[Point]] = {}
    for members in families.values():
        if len(members) > 1:
            name = min((_name(group) for group, _ in members), key=len)
            series[name] = [(row[key], row["accuracy"], spread(row)) for _, row in members]
    if not series:
        return f"{path.name} not drawn: no two runs differ in {key} alone"
    counted = [pair for members in families.values() if len(members) > 1 for pair in members]
    title = f"Accuracy and {SWEEPS[key][0].lower()}{SWEEPS[key][1:]}\n{_count_text(counted, True)}"
    return f"written {lines(series, path, SWEEPS[key], title)}"


def _curves(groups: Sequence[Group], folder: Path) -> Iterator[str]:
    series = {_name(group): group.metrics() for group in groups}
    series = {name: records for name, records in series.items() if records}
    if not series:
        yield "training_curves.png not drawn: no run has a log of its training"
    names = list(series)
    parts = [names[i : i + LINES] for i in range(0, len(names), LINES)]
    for number, part in enumerate(parts, 1):
        end = f"-{number}" if len(parts) > 1 else ""
        path = folder / f"training_curves{end}.png"
        yield f"written {loss_parts({name: series[name] for name in part}, path)}"


def _name(group: Group) -> str:
    """Return the name by which `styles_of` chooses a style: the method's name for a plain run.

    A run that is not named like its method has a style of its own.
    """
    return group.method if group_label(group) != group.name else group.name


def _count_text(rows: list[tuple[Group, TableRow]], with_spread: bool = False) -> str:
    counts = " or ".join(f"{n:,}" for n in sorted({row["n"] for _, row in rows}))
    many = max(len(row["seeds"]) for _, row in rows)
    mean = f", mean of {many} seeds" if many > 1 else ""
    end = f", ± {describe_spread([row for _, row in rows])}" if with_spread else ""
    return f"{counts} problems{mean if not with_spread else ''}{end}"
