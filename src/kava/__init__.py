"""Latent reasoning by compressed KV-cache distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Reasoner", "Recipe", "__version__", "compressed", "load_recipe", "pipeline"]

if TYPE_CHECKING:
    from kava.decoding import compressed
    from kava.model import Reasoner
    from kava.recipe import Recipe
    from kava.recipe_file import load_recipe
    from kava.text_generation import pipeline

_HOMES = {
    "Reasoner": "kava.model",
    "Recipe": "kava.recipe",
    "compressed": "kava.decoding",
    "load_recipe": "kava.recipe_file",
    "pipeline": "kava.text_generation",
}


def __getattr__(name: str) -> Any:
    # torch is imported on first use of a name, so that `import kava` stays fast.
    if name not in _HOMES:
        raise AttributeError(f"module 'kava' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
