"""What `kava bench matrix` says and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kava.bench import matrix
from kava.bench.matrix import Row
from kava.bench.speed import Speeds
from kava.bench.table import table
from kava.bench.whole import Wholes
from kava.dry_run import Notes, large
from kava.launch.attempt import say_plainly
from kava.provenance import provenance, write_json
from kava.report.tables import counted
from kava.report.tables import memory as told_bytes


@dataclass(frozen=True)
class Machines:
    """What the hours are asked for.

    gpus: numbers of them.
    gigabytes: of memory of one, sizes that are asked about.
    """

    gpus: Sequence[int]
    gigabytes: Sequence[float]
    speeds: Speeds


def bench_matrix(
    files: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str],
    shape: str | None,
    machines: Machines,
    output: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Find out what every recipe needs; print and write it. Nothing is trained or downloaded.

    Raises:
        KavaError: a recipe or shape that is not possible.
    """
    planned = matrix.plan(files, seeds, settings, console)
    wholes, notes, rows = Wholes([1e9 * size for size in machines.gigabytes], shape), Notes(), {}
    with console.status("counting") as status:
        for number, name in enumerate(planned.runs):
            status.update(f"counting {name}, {number + 1} of {len(planned.runs)}")
            rows[name], whole = matrix.row(planned, name, wholes)
            for note in whole.notes:
                notes.add(name, note)
    speeds = matrix.speeds_of(rows, machines.speeds)
    hours = matrix.hours(rows, speeds, machines.gpus) if speeds else None
    told = {
        "what": "whole trainings, counted and not run: FLOPs are the least of the method's "
        "equations; memory, disk and hours follow from them",
        "assumed": list(ASSUMED) + notes.lines(),
        "recipes": rows,
        "totals": matrix.totals(rows.values()),
        "speeds": {name: speed.source for name, speed in speeds.items()},
        "hours": hours,
    }
    _say(rows, told, notes, machines, console)
    if output:
        write_json(output, {**told, **provenance()})
        console.print(f"written {output}", highlight=False)
    return told


#: What holds for every number.
ASSUMED = (
    "FLOPs, token-forwards: of real columns alone, backward pass included; pads, validation, "
    "loading and saving are not counted",
    "memory: an estimate of one process's training step on a GPU, its layers not compiled, its "
    "weights not sharded; GB are 10^9 bytes",
    "disk: of a run's folder, without the tokenizer's files; backbones that are not here are taken "
    "to be bf16",
)
ASSUMED_OF_HOURS = (
    "hours: least FLOPs / (share x rate); a run without a speed is left out",
    "GPUs left shared: assumes that n GPUs take an n-th of the time of one; nobody has measured it",
)
NO_HOURS = "no hours: give --measured FILE of kava bench train, or --share and --rate of your GPU"


def _say(
    rows: dict[str, Row],
    told: dict[str, Any],
    notes: Notes,
    machines: Machines,
    console: Console,
) -> None:
    hours, totals = told["hours"], told["totals"]
    console.print(_work(rows, hours["each"] if hours else {}))
    console.print(_room(rows, machines.gigabytes))
    if hours:
        console.print(_hours(hours))
    part = f"{totals['counted']} of " if totals["counted"] < totals["runs"] else ""
    say_plainly(
        console,
        f"{part}{counted(totals['runs'], 'run')}: {flops(totals['flops_least'])}; on disk "
        f"{told_bytes(totals['disk_done'])} when done, {told_bytes(totals['disk_training'])} if "
        f"all are trained at once; backbones {told_bytes(totals['backbones'])}",
    )
    if hours:
        timed = f"{hours['runs']} of {counted(hours['of_runs'], 'run')}"
        say_plainly(console, f"{timed}: {told_hours(hours['gpu_hours'])} GPU hours")
    console.print()
    for words in (*ASSUMED, *(ASSUMED_OF_HOURS if hours else (NO_HOURS,)), *notes.lines()):
        say_plainly(console, words)
    for words in _sources(told["speeds"]):
        say_plainly(console, words)


def _sources(speeds: dict[str, str]) -> list[str]:
    said = Notes()
    for name, source in speeds.items():
        said.add(name, f"speed {source}")
    return said.lines()


def _work(rows: dict[str, Row], each: dict[str, float]) -> Table:
    headings = ("recipe", "rows", "epochs", "steps", "token-forwards", "FLOPs a run")
    lines = [
        (
            name,
            _count(row["rows"]),
            "?" if row["epochs"] is None else f"{row['epochs']:.3g}",
            _count(row["steps"]),
            "?" if row["token_forwards_least"] is None else large(row["token_forwards_least"]),
            flops(row["flops_least"]),
            *([told_hours(each[name]) if name in each else "?"] if each else []),
        )
        for name, row in rows.items()
    ]
    return table((*headings, *(["hours"] if each else [])), lines)


def _room(rows: dict[str, Row], gigabytes: Sequence[float]) -> Table:
    sizes = [f"{size:g}" for size in gigabytes]
    inside = [f"rows in {size} GB" for size in sizes]
    lines = [
        (
            name,
            str(len(row["runs"])),
            rows_and_memory(row["memory"]),
            *(rows_that_fit(row["memory_by_gpu_gb"].get(s), bool(row["memory"])) for s in sizes),
            training_and_done(row["disk"]),
        )
        for name, row in rows.items()
    ]
    return table(("recipe", "runs", "rows: memory", *inside, "disk in training, done"), lines)


def _hours(hours: dict[str, Any]) -> Table:
    lines = [(n, *map(told_hours, found.values())) for n, found in hours["on_gpus"].items()]
    return table(("GPUs", "one GPU a run, hours", "GPUs left shared, hours"), lines)


def rows_and_memory(fit: dict[str, int] | None) -> str:
    """`32: 18.5 GB`; `?` where it is not known."""
    return f"{fit['micro_batch_size']}: {told_bytes(fit['bytes'])}" if fit else "?"


def training_and_done(disk: dict[str, int] | None) -> str:
    """`1.3 GB, 144 MB`; `?` where it is not known."""
    return f"{told_bytes(disk['training'])}, {told_bytes(disk['done'])}" if disk else "?"


def rows_that_fit(fit: dict[str, int] | None, known: bool) -> str:
    """`64`, `none`, or `?` where the memory is not known."""
    return str(fit["micro_batch_size"]) if fit else ("none" if known else "?")


def told_hours(number: float) -> str:
    """`1,234.5`, `7.28`, `0.00123`."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.3g}"


def flops(number: float | None) -> str:
    """`3.43 EFLOP` (10^18), `25.1 TFLOP` (10^12); `?` for None."""
    if number is None:
        return "?"
    for size, sign in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T")):
        if number >= size:
            return f"{number / size:.3g} {sign}FLOP"
    return f"{number / 1e9:.3g} GFLOP"


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
