"""Latent reasoning by compressed KV-cache distillation."""

from typing import TYPE_CHECKING, Any

from kava.system.version import __version__

__all__ = ["Reasoner", "Recipe", "__version__", "compressed", "load_recipe", "pipeline", "train_on"]

if TYPE_CHECKING:
    from kava.inference.compressed import compressed
    from kava.inference.pipeline import pipeline
    from kava.reasoning.reasoner import Reasoner
    from kava.recipe.load import load_recipe
    from kava.recipe.schema import Recipe
    from kava.training.from_rows import train_on

_HOMES = {
    "Reasoner": "kava.reasoning.reasoner",
    "Recipe": "kava.recipe.schema",
    "compressed": "kava.inference.compressed",
    "load_recipe": "kava.recipe.load",
    "pipeline": "kava.inference.pipeline",
    "train_on": "kava.training.from_rows",
}


def __getattr__(name: str) -> Any:
    # torch is only imported when a name is first used, so that `import kava` is fast.
    if name not in _HOMES:
        raise AttributeError(f"module 'kava' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
