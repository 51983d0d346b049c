"""Find files that ship with the project: recipes, the quickstart backbone and its KaVa checkpoint.

In a checkout, they are at its root; in a wheel, they are inside the package. A path that exists as
given always takes precedence, so a user's own `recipes/` folder is never shadowed.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from kava.errors import KavaError

_PACKAGE = Path(__file__).resolve().parents[1]


def roots() -> list[Path]:
    """Return the folders that may contain shipped files, nearest first."""
    checkout = _PACKAGE.parent.parent
    return [root for root in (_PACKAGE, checkout) if (root / "recipes").is_dir()]


def expand_user(path: str | Path) -> Path:
    """Expand `~` and `~user`; a path with an unknown user is returned unchanged."""
    return Path(os.path.expanduser(path))  # pathlib's raises RuntimeError for an unknown user


def find(path: str | Path) -> Path:
    """Resolve a path given by the user: as it is, otherwise among the shipped files.

    Raises:
        KavaError: if neither exists.
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
    """Return the folder, as given or shipped, if it contains a file `name`; otherwise None."""
    try:
        folder = find(path)
    except KavaError:
        return None
    return folder if (folder / name).is_file() else None


def find_all(path: str | Path) -> list[Path]:
    """Resolve a path, or a pattern (`recipes/*_aug/kava.yaml`) that the shell did not expand.

    The files are searched as by `find`: as given, otherwise among the shipped files.

    Raises:
        KavaError: if nothing matches in either place.
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


def distinct_names(paths: Sequence[Path], separator: str) -> tuple[list[str], list[int]]:
    """Return a name for each path: its last part, with as many folders as make it unique.

    Args:
        paths: absolute paths.
        separator: text between the parts of a name.

    Returns:
        the names, and the indices of those that are not unique with all folders.
    """
    num_parts = [1] * len(paths)
    while True:
        found = [separator.join(p.parts[-n:]) for p, n in zip(paths, num_parts, strict=True)]
        clashing = [i for i, name in enumerate(found) if found.count(name) > 1]
        longer = [i for i in clashing if num_parts[i] < len(paths[i].parts) - 1]
        if not longer:
            return found, clashing
        for i in longer:
            num_parts[i] += 1


def portable_name(path: Path) -> str:
    """Return a name with which `find` finds a file from any working directory.

    A shipped file keeps its name inside the project, so the result contains no path of this
    machine.
    """
    full = path.resolve()
    for root in roots():
        if full.is_relative_to(root):
            return full.relative_to(root).as_posix()
    return str(full)
