"""Resolve a recipe: add the defaults and options of its method, and check which losses it has.

`kava.load_recipe` checks the keys, types and limits of a recipe, which does not require PyTorch.
Everything that depends on the method is added here, once, before anything is built or written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kava.errors import KavaError
from kava.recipe import registry
from kava.recipe.json_schema import json_schema
from kava.recipe.load import load_recipe
from kava.recipe.schema import Recipe, merge, to_kava_error, validate

#: Recipe sections that set the weight and the form of a distillation loss.
_LOSSES = ("codi", "kv", "latent_readout", "multiplex")


def resolve(recipe: Recipe, where: str = "recipe") -> Recipe:
    """Return the recipe with its method's defaults filled in and every option written out.

    The values of the recipe take precedence over the defaults. A recipe that is already resolved is
    returned unchanged.

    Args:
        where: name of the recipe in error messages, such as its file.

    Raises:
        KavaError: the recipe weights a loss or sets an update that the method does not have, or
            sets options that the method rejects; the error names the key.
    """
    if recipe.is_resolved:
        return recipe
    method = registry.find("methods", recipe.method)
    given = recipe.model_dump(by_alias=True, exclude_unset=True)
    whole: Recipe = validate(merge(method.defaults, given), where)
    for name in _LOSSES:
        if name not in method.losses and (weight := getattr(whole, name).weight):
            has = f" (it has {', '.join(method.losses)})" if method.losses else ""
            raise KavaError(
                f"{where}: {name}.weight {weight}: method '{whole.method}' has no such loss; "
                f"leave it at 0{has}",
                code="reasoning.no-such-loss",
                key=f"{name}.weight",
            )
    _check_iterations(whole, method, where)
    try:
        options = method.Options.model_validate(whole.method_options)
    except ValidationError as error:
        refused = to_kava_error(error, method.Options, "method_options.")
        raise refused.with_location(f"{where}: method_options of '{whole.method}'") from None
    whole.method_options = options.model_dump(by_alias=True)
    return whole.mark_resolved()


def _check_iterations(recipe: Recipe, method: Any, where: str) -> None:
    """Raise a KavaError if the recipe changes iterations in a way that the method does not have."""
    changed = {
        "latent_update": recipe.latent_update == "residual",
        "random_iterations": recipe.random_iterations is not None,
    }
    for key in (key for key, given in changed.items() if given and not method.jacobi):
        raise KavaError(
            f"{where}: {key}: the latents of method '{recipe.method}' are not refined by Jacobi "
            f"iteration; omit {key}",
            code="reasoning.no-such-update",
            key=key,
        )
    if recipe.random_iterations and recipe.kv.weight and recipe.kv.supervise == "all":
        raise KavaError(
            f"{where}: kv.supervise: all logs a loss for each pass, and random_iterations "
            "changes their number; use kv.supervise: last",
            code="reasoning.uneven-passes",
            key="kv.supervise",
        )


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipe files, with the options of each method."""
    methods = registry.names("methods")
    return json_schema({name: registry.find("methods", name).Options for name in methods})


def load_resolved(path: str | Path, overrides: Sequence[str] = (), saved: bool = False) -> Recipe:
    """Read a recipe file as `kava.load_recipe` does, and resolve it (see `resolve`).

    Args:
        saved: whether the file belongs to a run or a checkpoint.

    Raises:
        KavaError: see `kava.load_recipe` and `resolve`.
    """
    return resolve(load_recipe(path, overrides, saved=saved), str(path))


def validate_resolved(tree: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe given as a mapping and resolve it.

    Raises:
        KavaError: see `resolve`; `where` names the mapping.
    """
    return resolve(validate(tree, where), where)
