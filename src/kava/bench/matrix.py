"""A matrix of trainings: what each recipe needs, and the hours of all on some GPUs.

Rows are plain values, as a result file holds them, so that a page can be made from the file when
a speed has been measured that nobody had when the rows were counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kava import assets, sweep
from kava.bench.packing import Job, packed, shared
from kava.bench.speed import Speed, Speeds
from kava.bench.whole import Fit, Whole, Wholes
from kava.errors import KavaError
from kava.launch.attempt import Run
from kava.recipe import Recipe, Train
from kava.recipe_file import load_recipe

Row = dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """Recipes with their seeds.

    runs: by the recipe's name.
    begins: where a recipe's backbone is a run of another one here, that other recipe.
    """

    runs: dict[str, list[Run]]
    begins: dict[str, Recipe]

    @property
    def count(self) -> int:
        """Of all runs."""
        return sum(map(len, self.runs.values()))

    def recipe(self, name: str) -> Recipe:
        """With the backbone that a chain of trainings begins from, in any of its seeds."""
        recipe, seen = self.runs[name][0].recipe, {name}
        while recipe.backbone in self.begins:
            if recipe.backbone in seen:
                raise KavaError(f"{name}: its backbone is a run that begins from its own")
            seen.add(recipe.backbone)
            before = self.begins[recipe.backbone]
            recipe = recipe.model_copy(
                update={"backbone": before.backbone, "revision": before.revision}
            )
        return recipe

    def after(self, name: str) -> str | None:
        """The run of this matrix that has to be done before those of a recipe."""
        before = self.begins.get(self.runs[name][0].recipe.backbone)
        all_runs = (run for runs in self.runs.values() for run in runs)
        return next((run.folder.name for run in all_runs if run.recipe == before), None)


def plan(
    files: Sequence[str], seeds: Sequence[int], settings: Sequence[str], console: Console
) -> Matrix:
    """The runs that `kava sweep` would make of this.

    Raises:
        KavaError: as `kava.sweep.plan` does.
    """
    runs: dict[str, list[Run]] = {}
    for run in sweep.plan(files, seeds, settings, Path("runs"), console):
        runs.setdefault(run.name, []).append(run)
    known = {_trained_as(file): file for given in files for file in assets.find_all(given)}
    begins = {}
    for backbone in {run[0].recipe.backbone for run in runs.values()}:
        name, sign, seed = Path(backbone).name.rpartition("-seed")
        if sign and seed.isdecimal() and name in known:
            begins[backbone] = load_recipe(known[name], [*settings, f"seed={seed}"])
    return Matrix(runs, begins)


def _trained_as(file: Path) -> str:
    """What `kava train` calls a recipe's run, without its seed."""
    return f"{file.parent.name}-{file.stem}"


def row(matrix: Matrix, name: str, wholes: Wholes) -> tuple[Row, Whole]:
    """What the trainings of one recipe need, as plain values and as it was found out.

    Raises:
        KavaError: see `Wholes.of`; recipes that begin from each other.
    """
    recipe = matrix.recipe(name)
    whole = wholes.of(recipe)
    return {
        "method": recipe.method,
        "adapter": recipe.adapter,
        "shape": wholes.shape or recipe.backbone,
        "seeds": [run.recipe.seed for run in matrix.runs[name]],
        "runs": [run.folder.name for run in matrix.runs[name]],
        "after": matrix.after(name),
        "rows": whole.rows,
        "epochs": whole.epochs,
        "steps": whole.steps,
        "token_forwards_least": whole.token_forwards,
        "flops_least": None if whole.flops is None else round(whole.flops),
        "memory": _fit(whole.own),
        "memory_by_gpu_gb": {f"{size / 1e9:g}": _fit(fit) for size, fit in whole.fits.items()},
        "disk": whole.disk and {"done": whole.disk.done, "training": whole.disk.training},
        "backbone_bytes": whole.backbone_bytes,
        "train": recipe.train.model_dump(),
    }, whole


def _fit(fit: Fit | None) -> dict[str, int] | None:
    return fit and {"micro_batch_size": fit.rows, "bytes": round(fit.memory.total)}


def totals(rows: Iterable[Row]) -> dict[str, int]:
    """Runs, those whose FLOPs are known, and of these FLOPs, disk and the backbones, once each."""
    rows = list(rows)
    backbones = {row["shape"]: row["backbone_bytes"] or 0 for row in rows}
    return {
        "runs": sum(len(row["runs"]) for row in rows),
        "counted": sum(len(row["runs"]) for row in rows if row["flops_least"] is not None),
        "flops_least": sum(len(row["runs"]) * (row["flops_least"] or 0) for row in rows),
        "disk_done": sum(len(row["runs"]) * row["disk"]["done"] for row in rows if row["disk"]),
        "disk_training": sum(
            len(row["runs"]) * row["disk"]["training"] for row in rows if row["disk"]
        ),
        "backbones": sum(backbones.values()),
    }


def speeds_of(rows: dict[str, Row], speeds: Speeds) -> dict[str, Speed]:
    """By recipe, of those whose FLOPs are known and that have a speed."""
    found = {}
    for name, row in rows.items():
        if row["flops_least"] is None:
            continue
        train = Train.model_validate(row["train"])
        speed = speeds.of(row["method"], row["adapter"], row["shape"], train)
        if speed is not None:
            found[name] = speed
    return found


def hours(rows: dict[str, Row], speeds: dict[str, Speed], gpus: Sequence[int]) -> dict[str, Any]:
    """Of the runs that have a speed: each, all together, and all on each number of GPUs.

    Args:
        speeds: by recipe.
    """
    each = {
        name: rows[name]["flops_least"] / speed.flops_per_second / 3600
        for name, speed in speeds.items()
    }
    jobs = [
        Job(run, each[name], rows[name]["after"], rows[name]["train"]["batch_size"])
        for name in each
        for run in rows[name]["runs"]
    ]
    return {
        "runs": len(jobs),
        "of_runs": sum(len(row["runs"]) for row in rows.values()),
        "each": {name: round(value, 4) for name, value in each.items()},
        "gpu_hours": round(sum(job.hours for job in jobs), 4),
        "on_gpus": {
            str(count): {
                "one_gpu_a_run": round(packed(jobs, count), 4),
                "gpus_left_shared": round(shared(jobs, count), 4),
            }
            for count in gpus
        },
    }
