"""Refuse symbolic links inside a folder that kava writes to; they are never followed.

A run folder may come from somebody else, and a link in it may point to any file of the user. The
folder itself, as it was given, may be a link or lie below one.
"""

import os
import secrets
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from kava.errors import KavaError


def check(path: Path, below: Path | None = None) -> None:
    """Raise an error if a path to write to is a symbolic link, or passes through one.

    Args:
        below: the folder that the user gave; the path that leads to it is not checked. By default
            the folder of the file.

    Raises:
        KavaError: with the link.
    """
    at = path.parent if below is None else below
    for part in path.relative_to(at).parts:
        at = at / part
        if at.is_symlink():
            raise _link_error(at)


def check_tree(folder: Path, apart_from: str | None = None) -> None:
    """Refuse a folder to write into that is a link or contains one at any depth.

    Used for folders that libraries write into, with file names of their own.

    Args:
        apart_from: pattern of the names of links that such a library makes itself. They are
            accepted if they lead to a file beside them.

    Raises:
        KavaError: with the path of the link.
    """
    check(folder)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            link = Path(place, name)
            if apart_from and fnmatch(name, apart_from) and _links_within_folder(link):
                continue
            check(link)


def _links_within_folder(link: Path) -> bool:
    """Whether a link leads to a regular file in its own folder that is no link itself."""
    if not link.is_symlink():
        return True
    target = link.parent / os.readlink(link)
    return target.parent == link.parent and target.is_file() and not target.is_symlink()


def check_named(folder: Path, patterns: tuple[str, ...]) -> None:
    """Run `check_tree` on everything directly in a folder whose name matches one of the patterns.

    Raises:
        KavaError: with the link.
    """
    if folder.is_dir():
        for name in os.listdir(folder):
            if any(fnmatch(name, pattern) for pattern in patterns):
                check_tree(folder / name)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents.

    Inside the temporary folder, which all users of a machine share, only this user may write into
    them, whatever the umask allows: nobody else can put a lock or a link there.
    """
    shared = Path(tempfile.gettempdir()).resolve()
    missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
    for one in reversed(missing):
        private = shared in one.resolve().parents
        one.mkdir(mode=0o700 if private else 0o777, exist_ok=True)


def replace(file: Path, content: bytes) -> None:
    """Write a new file next to the target, under an unpredictable name, and rename it.

    Because the name is random, nobody can have placed a symbolic link there.

    Raises:
        OSError: if it cannot be written. An existing file is then unchanged.
    """
    # The target's name may be as long as the file system allows, so it is not part of this name.
    partial = file.with_name(f"kava-{secrets.token_hex(8)}.partial")
    opened = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(opened, "wb") as out:
            out.write(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def append(file: Path, text: str, below: Path | None = None) -> None:
    """Append text to a file, which is created if it does not exist.

    Raises:
        KavaError: see `check`.
        OSError: if it cannot be written.
    """
    check(file, below)
    opened = os.open(file, os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_WRONLY, 0o666)
    with os.fdopen(opened, "a", encoding="utf-8") as out:
        out.write(text)


def _link_error(link: Path) -> KavaError:
    return KavaError(
        f"{link}: is a symbolic link, and kava does not write through symbolic links inside a "
        "folder; delete the link, or choose another location",
        code="system.symbolic-link",
        key=str(link),
    )
