"""`Reasoner.train_on`: train on examples and a recipe given in Python instead of in files."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kava.data import rows_hash
from kava.data.rows import columns_of, to_examples
from kava.errors import KavaError
from kava.reasoning import batching
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved, resolve
from kava.recipe import registry, schema
from kava.recipe.schema import Recipe
from kava.system.text import PlainConsole
from kava.training.rows import drop_validation_questions
from kava.training.run import train_reasoner
from kava.types import Example

SOURCE = "rows given in Python"

#: Recipe keys that determine the weights, or how the parts of an example become tokens.
_MADE_OF = (
    "method", "adapter", "lora.r", "lora.alpha", "lora.dropout", "lora.targets", "projection",
    "projection_dim", "kv.projection",
)  # fmt: skip


def train_on(
    reasoner: Reasoner,
    rows: Sequence[Example | Mapping[str, Any]],
    recipe: Recipe | str | Path | None,
    validation: Sequence[Example | Mapping[str, Any]],
    output: str | Path | None,
    resume: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Train a reasoner on examples given in Python; see `Reasoner.train_on`."""
    if resume and output is None:
        raise KavaError(
            "train_on: resume=True requires an output folder",
            code="training.no-output",
            key="output",
        )
    resolved = _resolve_recipe(reasoner, recipe)
    options = resolved.data.options
    examples = as_examples(rows, "rows", options)
    held_out = as_examples(validation, "validation", options) if len(validation) else []
    use_recipe(reasoner, resolved)
    with ExitStack() as stack:
        # Outside of the project's folders, because it is deleted.
        run = Path(output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run")
        console = PlainConsole(quiet=quiet, soft_wrap=True)
        both = drop_validation_questions(examples, held_out, resolved.data, console), held_out
        data = {part: _record(part_rows) for part, part_rows in _parts(*both)}
        recipe = reasoner.recipe
        result = train_reasoner(reasoner.train(), both, data, recipe, run, console, resume)
    return result


def as_examples(
    rows: Iterable[Example | Mapping[str, Any]], what: str, options: Mapping[str, Any] | None = None
) -> list[Example]:
    """Validate rows, given as `Example` or as mappings, and return them as examples.

    Args:
        options: `data.options` of the recipe; those that say how a row is read are used.

    Raises:
        KavaError: if there are no rows, or a row has another type or is invalid (names its index in
            `what`).
    """
    columns, _ = columns_of(options or {})
    located = ((f"{what}[{place}]", row) for place, row in enumerate(rows))
    return to_examples(map(_as_mapping, located), what, what, None, columns, True)


def _as_mapping(located: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    where, row = located
    if isinstance(row, Example):
        steps = list(row.steps)
        row = {"id": row.id, "question": row.question, "steps": steps, "answer": row.answer}
    elif not isinstance(row, Mapping):
        raise KavaError(
            f"{where}: a row must be a mapping with 'question', 'steps' and 'answer', not "
            f"{type(row).__name__}",
            code="training.not-a-row",
            key=where,
        )
    return where, dict(row)


def use_recipe(reasoner: Reasoner, recipe: Recipe) -> None:
    """Replace the recipe of a reasoner, to train the same weights with it.

    Raises:
        KavaError: if the recipe is for other weights, or does not fit. The reasoner is then
            unchanged.
    """
    if recipe.lora.targets is None:  # the default of the family
        lora = recipe.lora.model_copy(update={"targets": reasoner.recipe.lora.targets})
        recipe = recipe.model_copy(update={"lora": lora})
    own, given = (schema.flatten(r.model_dump(by_alias=True)) for r in (reasoner.recipe, recipe))
    has_adapter = "lora" in (recipe.adapter, reasoner.recipe.adapter)
    for key in _MADE_OF:
        counts = has_adapter or not key.startswith("lora.")
        if counts and own.get(key) != given.get(key):
            raise KavaError(
                f"train_on: recipe: {key} is {given.get(key)!r}, but this reasoner has "
                f"{own.get(key)!r}; create a new reasoner with Reasoner.build(recipe)",
                code="training.other-recipe",
                key=key,
            )
    before = reasoner.method, reasoner.recipe
    reasoner.method = registry.find("methods", recipe.method)(recipe)
    kept = {name: getattr(reasoner.recipe, name) for name in ("backbone", "revision", "family")}
    reasoner.recipe = recipe.model_copy(update=kept)
    try:
        reasoner.method.check(reasoner)
    except KavaError:
        reasoner.method, reasoner.recipe = before
        raise
    reasoner.encoder = batching.Encoder(reasoner.tokenizer, recipe.drop_last_step)
    reasoner.merged = False  # from here on, all of it is trained


def _resolve_recipe(reasoner: Reasoner, recipe: Recipe | str | Path | None) -> Recipe:
    if recipe is None:
        return reasoner.recipe
    return resolve(recipe) if isinstance(recipe, Recipe) else load_resolved(recipe)


def _parts(rows: list[Example], validation: list[Example]) -> list[tuple[str, list[Example]]]:
    return [("train", rows), *([("validation", validation)] if validation else [])]


def _record(rows: list[Example]) -> dict[str, Any]:
    return {"source": SOURCE, "rows": len(rows), "revision": None, "sha256": rows_hash(rows)}
