"""Files written whole or not at all, and what a full or failing disk says."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kava.errors import KavaError
from kava.system import links


@contextmanager
def writing(path: Path, then: str = "free some space and begin again") -> Iterator[None]:
    """Turn whatever a full or failing disk raises inside into one line.

    safetensors and torch have errors of their own for it, which are no OSError.

    Args:
        then: how to go on, where the place as such can be written.

    Raises:
        KavaError: names the path and the system's reason.
    """
    try:
        yield
    except KavaError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _DISK):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0][:200]
        code = "system.not-written"
        if getattr(error, "errno", None) in _NOT_SPACE:
            then, code = "give another place", "system.not-writable"
        raise KavaError(
            f"{path}: cannot be written: {reason}; {then}", code=code, key=str(path)
        ) from None


#: Where more space would not help.
_NOT_SPACE = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip


#: In messages of safetensors (which gives the system's reason) and of torch.save.
_DISK = ("os error", "PytorchStreamWriter failed", "unexpected pos", "file write failed")


def check_writable(file: Path) -> None:
    """Check that `write_json` could write here, before what it writes is found out.

    Nothing is made or changed: folders that are not there are taken to be possible where a file is.

    Raises:
        KavaError: names the path and the system's reason; or a link, see `kava.system.links`.
    """
    with writing(file, "give another place"):
        links.check(file)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        there = next(folder for folder in file.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def write_json(file: Path, value: Any, below: Path | None = None) -> None:
    """Write whole or not at all; see `write_whole`."""
    write_whole(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n", below)


def write_whole(file: Path, content: str | bytes, below: Path | None = None) -> None:
    """Write whole or not at all, text in UTF-8; folders that are not there are made.

    Args:
        below: the folder that was given, in which no link is followed (`kava.system.links`); that
            of the file, if not given.

    Raises:
        KavaError: the disk is full or fails, or there is a link; a file that was there is as it
            was.
    """
    with writing(file):
        links.check(file, below)
        file.parent.mkdir(parents=True, exist_ok=True)
        links.replace(file, content.encode() if isinstance(content, str) else content)
