"""A lock file that holds across processes and across machines that share a folder.

It contains the process id, start time and host of its owner and, in a SLURM job, the job and its
number of restarts. A job that is killed cannot release its lock; its next start, possibly on
another machine, takes the lock over.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.system import links


class LockHeld(Exception):
    """Another process holds the lock; the message says which one."""


@contextmanager
def acquire(file: Path, console: Console) -> Iterator[None]:
    """Hold `file` as a lock inside the block.

    A lock that a dead process left behind is taken over, which is printed to the console.

    Raises:
        LockHeld: if its owner is alive, or may be: a process on another host cannot be checked,
            unless it is a SLURM job.
        KavaError: if there is a symbolic link in its place.
    """
    links.check(file)
    links.make_folder(file.parent)
    while not _create(file):
        try:
            _take_over(file, console)
            break
        except FileNotFoundError:  # released in the meantime: try again
            continue
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def holder(file: Path) -> str:
    """Describe who holds a lock; return an empty text if nobody does."""
    try:
        _dead_owner(file)
    except FileNotFoundError:
        pass
    except LockHeld as held:
        return str(held)
    return ""


def _create(file: Path) -> bool:
    """Create the lock file with this process as owner; return False if the file exists."""
    pid = os.getpid()
    owner = json.dumps({"pid": pid, "began": _began(pid), "host": socket.gethostname(), **_job()})
    try:
        made = os.open(file, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(made, "w", encoding="utf-8") as out:
        out.write(owner)
    return True


def _take_over(file: Path, console: Console) -> None:
    """Take over the lock of a dead process.

    If several processes try at once, the one that creates the second file wins. That file, which
    contains its owner, then replaces the lock atomically.
    """
    pid = _dead_owner(file)
    second = file.with_name(file.name + ".takeover")
    if not _create(second):
        raise LockHeld(
            f"another process is taking over {file}; if no such process is running, delete {second}"
        )
    try:
        if _dead_owner(file) != pid:
            raise LockHeld(f"another process has just taken over {file}")
        second.replace(file)
    except BaseException:  # only on failure: afterwards, the name may be another process's
        second.unlink(missing_ok=True)
        raise
    console.print(f"{file}: left behind by process {pid}, which is gone; taken over", style="dim")


def _dead_owner(file: Path) -> int:
    """Return the id of the process that the lock names, if that process is dead.

    Raises:
        LockHeld: if it is alive, or may be.
        FileNotFoundError: if the lock no longer exists.
    """
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
        pid, host = int(owner["pid"]), owner["host"]
    except (ValueError, KeyError, TypeError):  # its owner has created it but not yet written it
        raise LockHeld(
            f"another process has just started; if none is running, delete {file}"
        ) from None
    if _may_live(pid, host, owner):
        of_job = f" (SLURM job {owner['job']})" if "job" in owner else ""
        raise LockHeld(
            f"locked by process {pid} on {host}{of_job}; if it is not running, delete {file}"
        )
    return pid


def _job() -> dict[str, Any]:
    """Return the SLURM job of this process and its number of restarts; empty outside a job."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    starts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return {"job": os.environ["SLURM_JOB_ID"], "restarts": starts}


def _may_live(pid: int, host: str, owner: dict[str, Any]) -> bool:
    own = _job()
    if own and owner.get("job") == own["job"] and owner.get("restarts", 0) < own["restarts"]:
        return False  # an earlier start of the same job
    if host == socket.gethostname():
        return _lives(pid, owner.get("began"))
    if "job" in owner and owner["job"] != own.get("job"):
        from kava.system.slurm_queue import lives

        return lives(owner["job"]) is not False
    return True


def _lives(pid: int, began: str | None) -> bool:
    """Whether the process is alive, and is not another one that has reused its id.

    Ids are reused after a while. In a container that is restarted, they are reused immediately, and
    this process may itself have the id of the one that has ended.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is alive and belongs to another user
        pass
    return None in (began, now := _began(pid)) or began == now


def _began(pid: int) -> str | None:
    """Return when a process started: the boot id of the system, and clock ticks since boot.

    None if the system does not provide it (not Linux), or the process has ended.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # Field 22 of proc_pid_stat(5); field 2, a name in parentheses, may contain blanks.
    return f"{boot} {state.rpartition(')')[2].split()[19]}"
