"""Find run folders, and group the seeds of one recipe."""

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
from kava.report.rows import COMPARED, TableRow, check_alike, check_result, make_row
from kava.runs.folder import read_metrics, read_result_json
from kava.runs.layout import METRICS, RESULT
from kava.system import assets

_SEED = re.compile(r"-seed\d+$")

#: Recipe keys about how a run was carried out, which do not change what was trained.
CARRIED_OUT = (
    "seed", "family", "description", "revision", "train.micro_batch_size", "train.precision",
    "train.log_every", "train.save_every", "train.report_to", "eval.every", "eval.batch_size",
    "data.leak_check", "data.leak_stop", "data.allow_leaks",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, one run per seed.

    name: name of the run folders, without the seed.
    runs: seed to folder; the seed None stands for a model that was not trained.
    recipe: None for a model that was not trained.
    """

    name: str
    recipe: Recipe | None
    runs: dict[int | None, Path]
    results: dict[int | None, dict[str, Any]] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The registered name of the method."""
        return next(iter(self.results.values()))["method"]

    @property
    def tasks(self) -> list[str]:
        """The tasks that at least one run was scored on."""
        found = (task for result in self.results.values() for task in result.get("scores", {}))
        return list(dict.fromkeys(found))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the training log of the first seed that has one."""
        for folder in self.runs.values():
            if (folder / METRICS).is_file():
                return read_metrics(folder)
        return []

    def row(self, task: str, seeds: Sequence[int] = ()) -> TableRow:
        """Return the row of a task, see `make_row`; `seeds` without a run count as missing."""
        wanted = {seed: None for seed in seeds} if self.recipe else {}
        return make_row(self.name, {**wanted, **self.results}, task, self.recipe, self.runs)


def find(paths: Iterable[str | Path]) -> list[Group]:
    """Return the runs in and below the given folders, grouped by recipe, in the order found.

    A run is a folder with a `result.json` that names a method; its recipe is in the same folder.

    Raises:
        KavaError: a folder does not exist or has no run, a file cannot be read or is not a result,
            or two runs have the same recipe and seed.
    """
    groups: dict[str, Group] = {}
    for path in paths:
        top = assets.expand_user(path)
        if not top.is_dir():
            raise KavaError(
                f"{path}: no such folder; pass run folders, or folders that contain them",
                code="report.no-such-folder",
                key=str(path),
            )
        found = list(_runs(top))
        if not found:
            raise KavaError(
                f"{path}: contains no run (no {RESULT} that names a method)",
                code="report.no-run",
                key=str(path),
            )
        for folder, result in found:
            _add(groups, folder, result)
    return _make_names_unique(list(groups.values()))


def check_column(groups: Iterable[Group], task: str) -> None:
    """Check that the rows of a table's column were measured in the same way.

    The number of questions may differ, since the table shows it.

    Raises:
        KavaError: see `check_alike`.
    """
    runs = [
        (group.runs[seed], result) for group in groups for seed, result in group.results.items()
    ]
    check_alike({str(folder): result for folder, result in runs}, task, COMPARED)


def seeds(groups: Iterable[Group]) -> list[int]:
    """Return every seed that at least one group has, in order."""
    return sorted({seed for group in groups for seed in group.runs if seed is not None})


def setting(group: Group) -> str | None:
    """Return the paper's setting that a group was trained in, by backbone and data, or None."""
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
    """Return the keys in which a group differs from a recipe, with the group's values.

    Paths of the backbone and the data, and keys about how the training was carried out, are
    ignored.
    """
    own, other = (schema.flatten(one.model_dump(by_alias=True)) for one in (group.recipe, recipe))
    skipped = {*CARRIED_OUT, "backbone"}
    keys = [k for k in {**other, **own} if k not in skipped and own.get(k) != other.get(k)]
    keys = [key for key in keys if not key.startswith(("data.leak_files", "resources."))]
    return {key: own.get(key) for key in keys}


def _make_names_unique(groups: list[Group]) -> list[Group]:
    """Make the names of groups unique by prefixing as much of their folders' path as needed."""
    folders = [next(iter(group.runs.values())).resolve().parent for group in groups]
    paths = [folder / group.name for folder, group in zip(folders, groups, strict=True)]
    names, clashing = assets.distinct_names(paths, "/")
    if clashing:
        first = paths[clashing[0]]
        raise KavaError(
            f"{first.parent.name}: two recipes have the same name '{first.name}'; rename one of "
            "the runs",
            code="report.same-name",
            key=first.name,
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
    recipe = load_resolved(file, saved=True) if file.is_file() else None
    seed = recipe.seed if recipe else None
    name = _SEED.sub("", folder.resolve().name)
    same = schema.dump(recipe.model_copy(update={"seed": 0})) if recipe else str(folder.resolve())
    group = groups.setdefault(f"{name}\n{same}", Group(name, recipe, {}))
    if seed in group.runs and group.runs[seed].resolve() != folder.resolve():
        raise KavaError(
            f"{folder}: has the same recipe and seed as {group.runs[seed]}; pass only one of them",
            code="report.same-run",
            key=str(folder),
        )
    group.runs[seed] = folder
    group.results[seed] = result
