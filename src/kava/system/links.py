"""Symbolic links inside a folder that kava writes into: refused, never followed.

A run's folder may come from somebody else, and a link in it may lead to any file of the user's. The
folder itself, as it was given, may be a link or lie below one.
"""

from __future__ import annotations

import os
import secrets
from fnmatch import fnmatch
from pathlib import Path

from kava.errors import KavaError


def check(path: Path, below: Path | None = None) -> None:
    """Refuse a path to write to that is a link, or has one on its way.

    Args:
        below: the folder that was given; what leads to it is not looked at. That of the file, if
            not given.

    Raises:
        KavaError: names the link.
    """
    at = path.parent if below is None else below
    for part in path.relative_to(at).parts:
        at = at / part
        if at.is_symlink():
            raise _refused(at)


def check_tree(folder: Path) -> None:
    """Refuse a folder to write into that is a link, or holds one at any depth.

    For what libraries write, under names of their own.

    Raises:
        KavaError: names the link.
    """
    check(folder)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            check(Path(place, name))


def check_named(folder: Path, patterns: tuple[str, ...]) -> None:
    """`check_tree` for everything directly in a folder that has such a name.

    Raises:
        KavaError: names the link.
    """
    if folder.is_dir():
        for name in os.listdir(folder):
            if any(fnmatch(name, pattern) for pattern in patterns):
                check_tree(folder / name)


def replace(file: Path, content: bytes) -> None:
    """Write a new file beside, under a name at which nobody can have put a link, and rename it.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    # The name may be as long as the file system allows, so it is no part of this one.
    partial = file.with_name(f"kava-{secrets.token_hex(8)}.partial")
    opened = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(opened, "wb") as out:
            out.write(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def append(file: Path, text: str, below: Path | None = None) -> None:
    """Add text to the end of a file, which is made if it is not there.

    Raises:
        KavaError: see `check`.
        OSError: it cannot be written.
    """
    check(file, below)
    opened = os.open(file, os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_WRONLY, 0o666)
    with os.fdopen(opened, "a", encoding="utf-8") as out:
        out.write(text)


def _refused(link: Path) -> KavaError:
    return KavaError(
        f"{link}: is a symbolic link, and kava writes through none inside a folder; "
        "delete the link, or give another place to write to",
        code="system.symbolic-link",
        key=str(link),
    )
