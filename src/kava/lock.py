"""A lock file: one process at a time, across processes and machines that share a folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


class Held(Exception):
    """Another process holds the lock; the message says which, in words."""


@contextmanager
def hold(file: Path, console: Console) -> Iterator[None]:
    """Hold `file` as a lock inside the block.

    The file names its owner's process and host. One that a dead process of this host left behind
    is taken over, and the console told so.

    Raises:
        Held: its owner lives, or may live: a process of another host cannot be looked up.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while not _create(file):
        try:
            _take_over(file, console)
            break
        except FileNotFoundError:  # let go of since; it may be had now
            continue
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def holder(file: Path) -> str:
    """Who holds a lock, in words; empty if nobody does."""
    try:
        _dead_owner(file)
    except FileNotFoundError:
        pass
    except Held as held:
        return str(held)
    return ""


def _create(file: Path) -> bool:
    """Make the file with this process in it, unless it is there."""
    owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    try:
        made = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(made, "w", encoding="utf-8") as out:
        out.write(owner)
    return True


def _take_over(file: Path, console: Console) -> None:
    """Make the lock of a dead process this one's.

    Of several that try at once the one that makes the second file wins; that file, with its own
    name in it, then replaces the lock in one go.
    """
    pid = _dead_owner(file)
    second = file.with_name(file.name + ".takeover")
    if not _create(second):
        raise Held(f"another process is taking over {file}; if there is none, delete {second}")
    try:
        if _dead_owner(file) != pid:
            raise Held(f"another process has just taken over {file}")
        second.replace(file)
    except BaseException:  # only then: once it has replaced the lock, the name may be another's
        second.unlink(missing_ok=True)
        raise
    console.print(f"{file}: left behind by process {pid}, which is gone; taken over", style="dim")


def _dead_owner(file: Path) -> int:
    """The process that the lock names, if it is gone.

    Raises:
        Held: it lives, or may live.
        FileNotFoundError: there is no lock any more.
    """
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
        pid, host = int(owner["pid"]), owner["host"]
    except (ValueError, KeyError, TypeError):  # its owner has made it and not yet written to it
        raise Held(f"another process has just begun; if there is none, delete {file}") from None
    if host != socket.gethostname() or _lives(pid):
        raise Held(f"process {pid} on {host} is at it; if there is none, delete {file}")
    return pid


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and is somebody else's
        return True
    return True
