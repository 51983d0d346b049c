"""Files that ship with the project: recipes, the quickstart backbone and its KaVa checkpoint.

In a checkout they lie at its root; in a wheel inside the package. A path that exists as given
always wins, so a user's own `recipes/` folder is never shadowed.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from kava.errors import KavaError

_PACKAGE = Path(__file__).resolve().parents[1]


def roots() -> list[Path]:
    """Folders that may hold shipped files, nearest first."""
    checkout = _PACKAGE.parent.parent
    return [root for root in (_PACKAGE, checkout) if (root / "recipes").is_dir()]


def expand_user(path: str | Path) -> Path:
    """With `~` and `~somebody` as their folders; as it is where there is no such somebody."""
    return Path(os.path.expanduser(path))  # where pathlib's raises a RuntimeError


def find(path: str | Path) -> Path:
    """Resolve a user's path: as given, else among the shipped files.

    Raises:
        KavaError: neither exists.
    """
    given = expand_user(path)
    if given.exists():
        return given
    if not given.is_absolute():
        for root in roots():
            if (root / given).exists():
                return root / given
    raise KavaError(
        f"{path}: no such file or folder (looked here and among the shipped files)",
        code="system.no-such-file",
        key=str(path),
    )


def folder_with(path: str | Path, name: str) -> Path | None:
    """A folder, as given or shipped, that holds a file of this name; None where there is none."""
    try:
        folder = find(path)
    except KavaError:
        return None
    return folder if (folder / name).is_file() else None


def find_all(path: str | Path) -> list[Path]:
    """The same for a pattern (`recipes/*_aug/kava.yaml`) that the shell found nothing for.

    Raises:
        KavaError: nothing is found here or among the shipped files.
    """
    if not any(sign in str(path) for sign in "*?[") or expand_user(path).exists():
        return [find(path)]
    given = expand_user(path)
    for root in (Path(), *([] if given.is_absolute() else roots())):
        if found := sorted(Path(file) for file in glob.glob(str(root / given))):
            return found
    raise KavaError(
        f"{path}: nothing matches (looked here and among the shipped files)",
        code="system.nothing-matches",
        key=str(path),
    )


def portable_name(path: Path) -> str:
    """A name under which `find` finds a file again from any working directory.

    Shipped files keep their name inside the project, so that nothing of this machine is in it.
    """
    full = path.resolve()
    for root in roots():
        if full.is_relative_to(root):
            return full.relative_to(root).as_posix()
    return str(full)
