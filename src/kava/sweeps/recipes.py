"""`kava recipes`: list the recipes that ship with the project, and check that each of them runs."""

import gc
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console

from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved
from kava.recipe.load import load_recipe, read
from kava.recipe.schema import BackboneRecipe
from kava.system import assets
from kava.system.text import format_count, one_line, print_columns, print_text
from kava.types import Example

STEPS, ROWS = 2, 32
BACKBONE = "backbone"
#: How the line begins that names the JSON schema of a recipe.
FOR_EDITORS = "# yaml-language-server:"


@dataclass(frozen=True)
class Entry:
    """One recipe file and its description.

    path: the path with which `kava train` finds it (`kava pretrain` for a backbone).
    method: the method of the recipe, or `backbone`.
    about: its `description`, otherwise the first line of the file if that is a comment, and not for
        editors.
    """

    path: str
    file: Path
    method: str
    about: str


def entries(paths: Iterable[str | Path] = ()) -> list[Entry]:
    """Find the recipes below the given files and folders, or all shipped recipes if none is given.

    Raises:
        KavaError: if a file or folder does not exist, contains no recipe, or is not YAML.
    """
    found = [pair for path in paths for pair in _files(path)] or _shipped_files()
    return [_entry(path, file) for path, file in sorted(found, key=lambda pair: _order(pair[0]))]


def shipped_folder() -> Path:
    """Return the folder `recipes/` of the checkout or of the installed package."""
    return assets.roots()[0] / "recipes"


def show(console: Console) -> None:
    """Print one line for each recipe."""
    print_columns(console, [(e.path, e.method, e.about) for e in entries()])


def check(paths: list[str], console: Console) -> bool:
    """Run two optimizer steps of each recipe on a tiny backbone, and print a line for each.

    Returns:
        whether all of them ran.
    """
    found, failed = entries(paths), []
    width = max(len(entry.path) for entry in found)
    with tempfile.TemporaryDirectory() as scratch, _freeze_garbage_collector():
        bench = Bench(Path(scratch))
        for entry in found:
            begin = time.perf_counter()
            try:
                word, detail = "ok", " ".join(bench.run(entry))
            except Exception as error:  # any error is a finding
                word, detail = "FAILED", one_line(error)
                failed.append(entry.path)
            seconds = f"{time.perf_counter() - begin:.1f} s"
            print_text(console, f"{entry.path:<{width}}  {word:<6}  {seconds:>6}  {detail}")
    end = f"; failed: {', '.join(failed)}" if failed else ", all run"
    print_text(console, f"{format_count(len(found), 'recipe')}{end}")
    return not failed


class Bench:
    """Runs recipes on tiny random backbones, one of each family, in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._runs = 0

    def run(self, entry: Entry) -> list[str]:
        """Train a recipe for two steps; return the names of its losses.

        Raises:
            KavaError: if the recipe is not valid, cannot be built, or its loss is not finite.
        """
        from kava.runs.layout import METRICS
        from kava.system.progress import Progress
        from kava.training.trainer import train

        reasoner, rows = (self._pretraining if entry.method == BACKBONE else self._training)(entry)
        self._runs += 1
        run = self.folder / f"run{self._runs}"
        run.mkdir()
        train(reasoner, rows, [], run, False, Progress(entry.path, Console(file=StringIO())))
        lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
        return _losses(json.loads(line) for line in lines)

    def _training(self, entry: Entry) -> tuple:
        from kava.backbones import tiny
        from kava.reasoning.reasoner import Reasoner
        from kava.training import smoke

        resolved = load_resolved(entry.file)
        family = smoke.family(resolved)
        backbone = self.folder / family
        if not backbone.exists():
            tiny.tiny_backbone(family, backbone)
        small = smoke.shrink(resolved, backbone, STEPS)
        return Reasoner.build(small), _rows()

    def _pretraining(self, entry: Entry) -> tuple:
        from kava.training.pretrain import new_reasoner

        resolved = load_recipe(entry.file, kind=BackboneRecipe)
        short = {"steps": STEPS, "epochs": None, "batch_size": 4, "micro_batch_size": None}
        short |= {"log_every": 1, "save_every": None, "precision": "fp32"}
        small = resolved.model_copy(update={"train": resolved.train.model_copy(update=short)})
        return new_reasoner(small, _rows())[0], _rows()


@contextmanager
def _freeze_garbage_collector() -> Iterator[None]:
    # The Trainer runs garbage collection before each training. Without freezing, half of the time
    # of a check is spent on scanning the imported libraries.
    import kava.training.pretrain  # noqa: F401

    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _rows() -> list[Example]:
    from kava.data import load_examples

    return load_examples("synthetic", "train", limit=ROWS)


def _losses(records: Iterator[dict[str, float]]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name not in _NO_LOSS and not name.startswith("train_")]


_NO_LOSS = {
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "seconds_per_step",
    "stage",
}


def _files(path: str | Path) -> list[tuple[str, Path]]:
    """Return the recipe files at a path, each with the name under which it can be found again."""
    place = assets.find(path)
    if place.is_file():
        return [(str(path), place)]
    found = [(str(Path(path) / file.relative_to(place)), file) for file in place.rglob("*.yaml")]
    if not found:
        raise KavaError(
            f"{path}: no recipe (*.yaml) in this folder", code="sweeps.no-recipe", key=str(path)
        )
    return found


def _shipped_files() -> list[tuple[str, Path]]:
    folder = shipped_folder()
    return [(file.relative_to(folder.parent).as_posix(), file) for file in folder.rglob("*.yaml")]


def _entry(path: str, file: Path) -> Entry:
    tree = read(file)
    method = BACKBONE if "architecture" in tree else str(tree.get("method", "-"))
    lines = file.read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith(FOR_EDITORS)), "")
    comment = first.lstrip("# ") if first.startswith("#") else ""
    described = " ".join(str(tree.get("description") or "").split())
    return Entry(path, file, method, described or comment)


def _order(path: str) -> list:
    """Return a sort key that orders paths by folder, and numbers in names by value."""
    return [
        [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        for name in Path(path).parts
    ]
