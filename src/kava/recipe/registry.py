"""Registry of methods, evictions, data sets and tasks by the names of their files.

A new method, eviction, data set or task is one new file. Since names are those of the files, they
are known without importing the files.
"""

import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from kava.errors import KavaError, unknown_name

#: The subpackage of each kind; data sets are in the same package as the code that reads them.
PACKAGES = {
    "methods": "reasoning.methods",
    "evictions": "reasoning.evictions",
    "latents": "reasoning.latents",
    "losses": "reasoning.losses",
    "tasks": "data.tasks",
    "data": "data",
}
_NOT_DATA_SETS = {"answers", "files", "parquet", "rows", "shards"}
_PACKAGE = Path(__file__).resolve().parent.parent
_outside: dict[tuple[str, str], Any] = {}


def names(kind: str) -> list[str]:
    """Return the registered names of one kind, such as `methods` or `tasks`."""
    place = PACKAGES[kind]
    package = sys.modules.get(f"kava.{place}")  # its `__path__` may have been extended
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
    """Register a class from outside the package under `name`.

    Raises:
        KavaError: the name is already registered.
    """
    if name in names(kind):
        raise KavaError(
            f"{kind}: the name '{name}' is already in use; choose another name",
            code="recipe.name-taken",
            key=name,
        )
    _outside[kind, name] = value


def find(kind: str, name: str) -> Any:
    """Return the class registered under `name`: the attribute `IMPLEMENTATION` of its file.

    Raises:
        KavaError: the name is unknown; the error suggests the closest known one.
    """
    if (kind, name) in _outside:
        return _outside[kind, name]
    return module(kind, name).IMPLEMENTATION


def module(kind: str, name: str, display_name: str = "") -> ModuleType:
    """Import the file of the given name and return it as a module.

    Args:
        display_name: what to call the kind in the error message; by default `method` for `methods`
            and so on.

    Raises:
        KavaError: the name is unknown; the error suggests the closest known one.
    """
    check(kind, name, display_name)
    return importlib.import_module(f"kava.{PACKAGES[kind]}.{name}")


def check(kind: str, name: str, display_name: str = "") -> None:
    """Check that a name is known, without importing anything.

    Raises:
        KavaError: the name is unknown; the error suggests the closest known one.
    """
    known = names(kind)
    if name not in known:
        raise unknown_name(
            display_name or kind.removesuffix("s"), name, known, code="recipe.unknown-name"
        )
