"""What a method adds to a recipe: its defaults, its own options, and which losses it has.

A recipe as it is read (`kava.load_recipe`) is checked for its keys, types and limits, which takes
no PyTorch. What the method decides is added here, once, before anything is built or written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kava.errors import KavaError
from kava.recipe import registry
from kava.recipe.load import load_recipe
from kava.recipe.schema import Recipe, merge, refusal, validate

#: Sections of a recipe that are the weight and the form of a distillation loss.
_LOSSES = ("codi", "kv", "latent_readout")


def resolve(recipe: Recipe, where: str = "recipe") -> Recipe:
    """The recipe with its method's defaults under what it says itself, every option written out.

    A resolved recipe is returned as it is.

    Args:
        where: what errors call the recipe, such as its file.

    Raises:
        KavaError: a loss that the method does not have, or options that it refuses; names the key.
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
    try:
        options = method.Options.model_validate(whole.method_options)
    except ValidationError as error:
        refused = refusal(error, method.Options, "method_options.")
        raise refused.within(f"{where}: method_options of '{whole.method}'") from None
    whole.method_options = options.model_dump(by_alias=True)
    return whole.mark_resolved()


def load_resolved(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, as `kava.load_recipe` does, and add what its method says.

    Raises:
        KavaError: see `kava.load_recipe` and `resolve`.
    """
    return resolve(load_recipe(path, overrides), str(path))


def validate_resolved(tree: dict[str, Any], where: str) -> Recipe:
    """Check the keys of a recipe given as a mapping, and add what its method says.

    Raises:
        KavaError: see `resolve`; `where` names the mapping.
    """
    return resolve(validate(tree, where), where)
