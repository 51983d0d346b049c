"""File name in a folder -> class. A new method, eviction or latent rule is one new file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from kava.errors import KavaError, unknown

_outside: dict[tuple[str, str], Any] = {}


def names(folder: str) -> list[str]:
    """Registered names in a folder of the package, such as `methods` or `evictions`."""
    package = importlib.import_module(f"kava.{folder}")
    inside = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    return sorted({*inside, *(name for place, name in _outside if place == folder)})


def register(folder: str, name: str, value: Any) -> None:
    """Add a class from outside the package under `name`.

    Raises:
        KavaError: the name is taken.
    """
    if name in names(folder):
        raise KavaError(f"{folder}: the name '{name}' is taken")
    _outside[folder, name] = value


def find(folder: str, name: str) -> Any:
    """The class that `name` stands for: attribute `IMPLEMENTATION` of `kava.<folder>.<name>`.

    Raises:
        KavaError: unknown name, with the nearest known one.
    """
    if (folder, name) in _outside:
        return _outside[folder, name]
    known = names(folder)
    if name not in known:
        raise unknown(folder[:-1], name, known)
    return importlib.import_module(f"kava.{folder}.{name}").IMPLEMENTATION
