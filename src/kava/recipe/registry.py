"""File name in a folder -> class. A new method, eviction, data set or task is one new file.

Names are those of the files, so that they are known without importing what is in them.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from kava.errors import KavaError, unknown

#: Where each kind of file lies in the package; `data` sets lie beside what reads them.
PLACES = {
    "methods": "reasoning.methods",
    "evictions": "reasoning.evictions",
    "latents": "reasoning.latents",
    "losses": "reasoning.losses",
    "tasks": "data.tasks",
    "data": "data",
}
_NOT_DATA_SETS = {"files"}
_PACKAGE = Path(__file__).resolve().parent.parent
_outside: dict[tuple[str, str], Any] = {}


def names(kind: str) -> list[str]:
    """Registered names of one kind, such as `methods` or `tasks`."""
    place = PLACES[kind]
    package = sys.modules.get(f"kava.{place}")  # a path may have been added to it
    path = package.__path__ if package else [str(_PACKAGE.joinpath(*place.split(".")))]
    inside = [
        module.name
        for module in pkgutil.iter_modules(path)
        if not module.ispkg and not module.name.startswith("_")
    ]
    if kind == "data":
        inside = [name for name in inside if name not in _NOT_DATA_SETS]
    return sorted({*inside, *(name for place, name in _outside if place == kind)})


def register(kind: str, name: str, value: Any) -> None:
    """Add a class from outside the package under `name`.

    Raises:
        KavaError: the name is taken.
    """
    if name in names(kind):
        raise KavaError(f"{kind}: the name '{name}' is taken", code="recipe.name-taken", key=name)
    _outside[kind, name] = value


def find(kind: str, name: str) -> Any:
    """The class that `name` stands for: attribute `IMPLEMENTATION` of its file.

    Raises:
        KavaError: unknown name, with the nearest known one.
    """
    if (kind, name) in _outside:
        return _outside[kind, name]
    return module(kind, name).IMPLEMENTATION


def module(kind: str, name: str, called: str = "") -> ModuleType:
    """The file that `name` stands for, imported.

    Args:
        called: what the error calls such a thing, if not `method` for `methods` and so on.

    Raises:
        KavaError: unknown name, with the nearest known one.
    """
    check(kind, name, called)
    return importlib.import_module(f"kava.{PLACES[kind]}.{name}")


def check(kind: str, name: str, called: str = "") -> None:
    """Refuse an unknown name without importing anything.

    Raises:
        KavaError: names the nearest known one.
    """
    known = names(kind)
    if name not in known:
        raise unknown(called or kind.removesuffix("s"), name, known, code="recipe.unknown-name")
