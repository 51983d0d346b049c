"""A lock file that holds across processes, and across machines that share a folder.

The lock is that of the operating system (`flock`, by the package filelock), so it ends with its
process, however that ends, and whatever machine it ran on. The file says who holds it. On a file
system without `flock`, filelock takes the existence of the file for the lock.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from kava.system import distributed, links

#: Seconds in which a lock is tried, since `holder` takes it for a moment.
_MOMENT = 0.2


class LockHeld(Exception):
    """Another process holds the lock; the message says which one."""


@contextmanager
def acquire(file: Path, patience: float = _MOMENT) -> Iterator[None]:
    """Hold `file` as a lock inside the block; the file is removed at its end.

    Args:
        patience: seconds to wait for another process.

    Raises:
        LockHeld: if another process holds it.
        KavaError: if there is a symbolic link in its place.
    """
    links.check(file)
    links.make_folder(file.parent)
    lock = FileLock(file, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise LockHeld(_describe_holder(file)) from None
    try:
        if not isinstance(lock, SoftFileLock):  # which writes the same itself
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w") as out:
                out.write(f"{os.getpid()}\n{socket.gethostname()}\n")
        yield
    finally:
        file.unlink(missing_ok=True)  # whoever has opened it already sees that it is gone
        lock.release()


@contextmanager
def acquire_for_all(file: Path) -> Iterator[None]:
    """Hold a lock inside the block; with several processes, the main one holds it for all.

    Raises:
        LockHeld: on all processes.
    """
    with ExitStack() as stack:

        def hold() -> str:
            try:
                stack.enter_context(acquire(file))
            except LockHeld as held:
                return str(held)
            return ""

        if reason := distributed.from_main_rank(hold):
            raise LockHeld(reason)
        yield


def holder(file: Path) -> str:
    """Describe who holds a lock; return an empty text if nobody does."""
    if not file.is_file():
        return ""
    try:
        with FileLock(file, blocking=False):
            return ""
    except (Timeout, OSError):  # or this user may not try
        return _describe_holder(file)


def _describe_holder(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            pid, host, *_ = opened.read(300).split("\n")
    except (OSError, ValueError):  # released in the meantime, or not yet written
        return "locked by another process"
    return f"locked by process {pid} on {host}"
