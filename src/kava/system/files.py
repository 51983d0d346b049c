"""Write files atomically, and report a full or failing disk in one line."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kava.errors import KavaError, first_line
from kava.system import links


@contextmanager
def explain_disk_errors(
    path: Path, advice: str = "free some space and start again"
) -> Iterator[None]:
    """Turn any error that a full or failing disk raises inside the block into a one-line message.

    safetensors and torch have their own errors for this, which are not subclasses of OSError.

    Args:
        advice: what the user can do, if the location itself is writable.

    Raises:
        KavaError: with the path and the reason that the system gives.
    """
    try:
        yield
    except KavaError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _DISK):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        code = "system.not-written"
        if getattr(error, "errno", None) in _NOT_SPACE:
            advice, code = "choose another location", "system.not-writable"
        raise KavaError(
            f"{path}: cannot be written: {reason}; {advice}", code=code, key=str(path)
        ) from None


#: Errors that more space would not solve.
_NOT_SPACE = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip


#: Parts of disk error messages of safetensors (which gives the system's reason) and torch.save.
_DISK = ("os error", "PytorchStreamWriter failed", "unexpected pos", "file write failed")


def check_writable(file: Path) -> None:
    """Check that `write_json` could write this file, before its content is computed.

    Nothing is created or changed. A folder that does not exist is assumed to be creatable where a
    file is.

    Raises:
        KavaError: with the path and the reason that the system gives; or for a symbolic link, see
            `kava.system.links`.
    """
    with explain_disk_errors(file, "choose another location"):
        links.check(file)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        parent = next(folder for folder in file.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=parent):
            pass


def write_json(file: Path, value: Any, below: Path | None = None) -> None:
    """Write a value as JSON, atomically; see `write_whole`."""
    write_whole(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n", below)


def write_whole(file: Path, content: str | bytes, below: Path | None = None) -> None:
    """Write a file completely or not at all, text as UTF-8; missing folders are created.

    Args:
        below: the folder that the user gave, inside which no symbolic link is followed
            (`kava.system.links`); by default the folder of the file.

    Raises:
        KavaError: if the disk is full or fails, or there is a symbolic link. An existing file is
            then unchanged.
    """
    with explain_disk_errors(file):
        links.check(file, below)
        links.make_folder(file.parent)
        links.replace(file, content.encode() if isinstance(content, str) else content)
