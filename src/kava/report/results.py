"""Finding run folders, and putting the seeds of one recipe together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved
from kava.recipe import schema
from kava.recipe.schema import Recipe
from kava.report import published
from kava.report.rows import COMPARED, Row, check_alike, check_result, make_row
from kava.runs.folder import read_metrics, read_result_json
from kava.runs.layout import METRICS, RESULT
from kava.system import assets

_SEED = re.compile(r"-seed\d+$")

#: Recipe keys that say how a run was carried out and not what was trained.
CARRIED_OUT = (
    "seed", "family", "description", "revision", "train.micro_batch_size", "train.precision",
    "train.log_every", "train.save_every", "train.report_to", "eval.every", "eval.batch_size",
    "data.leak_check", "data.leak_stop", "data.allow_leaks",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, one per seed.

    name: of the run folders, without the seed.
    runs: seed to folder; the seed None stands for a model that was not trained.
    recipe: None for such a model.
    """

    name: str
    recipe: Recipe | None
    runs: dict[int | None, Path]
    results: dict[int | None, dict[str, Any]] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method's registered name."""
        return next(iter(self.results.values()))["method"]

    @property
    def tasks(self) -> list[str]:
        """Tasks that some run was scored on."""
        found = (task for result in self.results.values() for task in result.get("scores", {}))
        return list(dict.fromkeys(found))

    def metrics(self) -> list[dict[str, Any]]:
        """The log of the first seed that has one."""
        for folder in self.runs.values():
            if (folder / METRICS).is_file():
                return read_metrics(folder)
        return []

    def row(self, task: str, seeds: Sequence[int] = ()) -> Row:
        """See `make_row`; of `seeds`, those that are not there count as missing."""
        wanted = {seed: None for seed in seeds} if self.recipe else {}
        return make_row(self.name, {**wanted, **self.results}, task, self.recipe, self.runs)


def find(paths: Iterable[str | Path]) -> list[Group]:
    """The runs in and below the given folders, grouped by recipe, in the order found.

    A run is a folder with a `result.json` that names a method; its recipe stands beside it.

    Raises:
        KavaError: no such folder, no run in it, a file that cannot be read or holds no result, or
            two runs of one recipe and seed.
    """
    groups: dict[str, Group] = {}
    for path in paths:
        top = assets.expand_user(path)
        if not top.is_dir():
            raise KavaError(
                f"{path}: no such folder; give run folders, or folders that hold them",
                code="report.no-such-folder",
                key=str(path),
            )
        found = list(_runs(top))
        if not found:
            raise KavaError(
                f"{path}: holds no run (no {RESULT} that names a method)",
                code="report.no-run",
                key=str(path),
            )
        for folder, result in found:
            _add(groups, folder, result)
    return _named_apart(list(groups.values()))


def check_column(groups: Iterable[Group], task: str) -> None:
    """Check that what stands below each other in a table was measured alike.

    The number of questions may differ: a table says it.

    Raises:
        KavaError: see `check_alike`.
    """
    runs = [
        (group.runs[seed], result) for group in groups for seed, result in group.results.items()
    ]
    check_alike({str(folder): result for folder, result in runs}, task, COMPARED)


def seeds(groups: Iterable[Group]) -> list[int]:
    """Every seed that some group has, in order."""
    return sorted({seed for group in groups for seed in group.runs if seed is not None})


def setting(group: Group) -> str | None:
    """Which of the paper's settings a group was trained in, by backbone and data; None if none."""
    if group.recipe is None:
        return None
    form = group.recipe.data.options.get("form", "equation")
    data = {"equation": "GSM8k-Aug", "natural": "GSM8k-Aug-NL"}.get(form)
    if group.recipe.data.train != "gsm8k_aug" or group.recipe.data.train_rows is not None:
        return None
    name = group.recipe.backbone.rstrip("/").rpartition("/")[2]
    for setting, own in published.settings().items():
        if own["data"] == data and own["backbone"].rpartition("/")[2] == name:
            return setting
    return None


def changes(group: Group, recipe: Recipe) -> dict[str, Any]:
    """In which keys a group differs from a recipe: key to the group's value.

    Where the backbone and the rows lie, and how the training was carried out, do not count.
    """
    own, other = (schema.flatten(one.model_dump(by_alias=True)) for one in (group.recipe, recipe))
    skipped = {*CARRIED_OUT, "backbone"}
    keys = [k for k in {**other, **own} if k not in skipped and own.get(k) != other.get(k)]
    keys = [key for key in keys if not key.startswith(("data.leak_files", "resources."))]
    return {key: own.get(key) for key in keys}


def _named_apart(groups: list[Group]) -> list[Group]:
    """Groups of the same name take as much of their folders' path as tells them apart."""
    folders = [next(iter(group.runs.values())).resolve().parent.parts for group in groups]
    names = [group.name for group in groups]
    for depth in range(1, max((len(parts) for parts in folders), default=0) + 1):
        clashing = [i for i, name in enumerate(names) if names.count(name) > 1]
        for i in clashing:
            names[i] = "/".join([*folders[i][-depth:], groups[i].name])
    for i, name in enumerate(names):
        if names.count(name) > 1:
            raise KavaError(
                f"{folders[i][-1]}: two recipes of the same name '{groups[i].name}'; rename a run",
                code="report.same-name",
                key=groups[i].name,
            )
    return [replace(group, name=name) for group, name in zip(groups, names, strict=True)]


def _runs(top: Path) -> Iterable[tuple[Path, dict[str, Any]]]:
    for file in sorted(top.rglob(RESULT), key=lambda file: file.parent.as_posix()):
        result = read_result_json(file)
        if isinstance(result, dict) and "method" in result and "scores" in result:
            check_result(result, file)
            yield file.parent, result


def _add(groups: dict[str, Group], folder: Path, result: dict[str, Any]) -> None:
    file = folder / "recipe.yaml"
    recipe = load_resolved(file) if file.is_file() else None
    seed = recipe.seed if recipe else None
    name = _SEED.sub("", folder.resolve().name)
    same = schema.dump(recipe.model_copy(update={"seed": 0})) if recipe else str(folder.resolve())
    group = groups.setdefault(f"{name}\n{same}", Group(name, recipe, {}))
    if seed in group.runs and group.runs[seed].resolve() != folder.resolve():
        raise KavaError(
            f"{folder}: the same recipe and seed as {group.runs[seed]}; give only one of them",
            code="report.same-run",
            key=str(folder),
        )
    group.runs[seed] = folder
    group.results[seed] = result
