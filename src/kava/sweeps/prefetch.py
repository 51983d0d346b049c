"""`kava prefetch`: download what recipes need, before runs without a network.

It uses the same loading code as a run, so a run finds everything that was fetched.
"""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console

from kava.backbones import loading
from kava.data import load_examples
from kava.data.tasks import load_task
from kava.evaluation.command import task_options
from kava.recipe.load import load_recipe
from kava.recipe.schema import BackboneRecipe, Data, Recipe
from kava.sweeps.sweep import is_backbone
from kava.system import assets, hub
from kava.system.text import format_bytes, print_text


def prefetch(
    files: Sequence[str], tasks: Sequence[str], settings: Sequence[str], console: Console
) -> None:
    """Download the backbones and rows of all recipes, each once; print their location and size.

    Args:
        files: recipes, or patterns of them.
        tasks: tasks whose rows are needed too.
        settings: overrides for all recipes.

    Raises:
        KavaError: if a recipe cannot be read, or the Hub does not provide something. What was
            fetched before is kept.
    """
    wanted: dict[str, Callable[[], object]] = {}
    for file in (file for given in files for file in assets.find_all(given)):
        kind = BackboneRecipe if is_backbone(file) else Recipe
        wanted |= _requirements(load_recipe(file, [*settings], kind), tasks)
    reported: set[tuple] = set()
    total = 0
    for fetch in wanted.values():
        with hub.recording_downloads() as found:
            fetch()
        for one in found:
            if (key := (one.name, one.what, one.folder)) not in reported:
                reported.add(key)
                total += one.bytes
                print_text(
                    console, f"{one.name}, {one.what}", f"{format_bytes(one.bytes)} in {one.folder}"
                )
    names = len({one[0] for one in reported})
    nothing = "nothing is needed from the Hub; " if not reported else ""
    print_text(
        console,
        f"{nothing}{names} repositories, {format_bytes(total)}; with HF_HUB_OFFLINE=1 runs start "
        "without a network",
    )


def _requirements(recipe: Recipe | BackboneRecipe, tasks: Iterable[str]) -> dict[str, Callable]:
    """Return what a recipe needs: for each item a key that identifies it, and how to load it."""
    needed: dict[str, Callable[[], object]] = {}
    if isinstance(recipe, Recipe):
        needed[f"backbone {recipe.backbone} {recipe.revision}"] = lambda: loading.locate(
            recipe.backbone, recipe.revision
        )
    data = recipe.data
    for source, split in ((data.train, "train"), (data.validation, "validation")):
        if source is not None and source != "synthetic":
            key = f"rows {source} {split} {data.options}"
            needed[key] = lambda source=source, split=split: _rows(data, source, split)
    for name in data.leak_check or []:
        file = data.leak_files.get(name)
        needed[f"task {name} {file}"] = lambda name=name, file=file: load_task(name, file=file)
    for name in tasks:
        options = task_options(recipe, name, {}) if isinstance(recipe, Recipe) else {}
        key = f"task {name} {None} {options}" if options else f"task {name} {None}"
        needed[key] = lambda name=name, options=options: load_task(name, options=options)
    return needed


def _rows(data: Data, source: str, split: str) -> None:
    limit = data.train_rows if split == "train" else data.validation_rows
    load_examples(source, split, limit=limit, options=data.options)
