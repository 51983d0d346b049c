"""A lock file: one process at a time, across processes and machines that share a folder.

It names its owner's process, when that began, its host and, in a job of SLURM, the job and how
often it was started again. A job that is killed cannot let go; its next start, maybe on another
machine, takes over.
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
    """Another process holds the lock; the message says which, in words."""


@contextmanager
def acquire(file: Path, console: Console) -> Iterator[None]:
    """Hold `file` as a lock inside the block.

    One that a dead process left behind is taken over, and the console told so.

    Raises:
        Held: its owner lives, or may live: a process of another host cannot be looked up, unless
            it is a job's.
        KavaError: there is a link in its place.
    """
    links.check(file)
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
    except LockHeld as held:
        return str(held)
    return ""


def _create(file: Path) -> bool:
    """Make the file with this process in it, unless it is there."""
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
    """Make the lock of a dead process this one's.

    Of several that try at once the one that makes the second file wins; that file, with its own
    name in it, then replaces the lock in one go.
    """
    pid = _dead_owner(file)
    second = file.with_name(file.name + ".takeover")
    if not _create(second):
        raise LockHeld(f"another process is taking over {file}; if there is none, delete {second}")
    try:
        if _dead_owner(file) != pid:
            raise LockHeld(f"another process has just taken over {file}")
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
        raise LockHeld(f"another process has just begun; if there is none, delete {file}") from None
    if _may_live(pid, host, owner):
        of_job = f" (SLURM job {owner['job']})" if "job" in owner else ""
        raise LockHeld(f"process {pid} on {host}{of_job} is at it; if there is none, delete {file}")
    return pid


def _job() -> dict[str, Any]:
    """The job of SLURM that this process is in, if it is in one."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    starts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return {"job": os.environ["SLURM_JOB_ID"], "restarts": starts}


def _may_live(pid: int, host: str, owner: dict[str, Any]) -> bool:
    own = _job()
    if own and owner.get("job") == own["job"] and owner.get("restarts", 0) < own["restarts"]:
        return False  # an earlier start of this very job
    if host == socket.gethostname():
        return _lives(pid, owner.get("began"))
    if "job" in owner and owner["job"] != own.get("job"):
        from kava.system.slurm_queue import lives

        return lives(owner["job"]) is not False
    return True


def _lives(pid: int, began: str | None) -> bool:
    """Whether that process lives, and not another one that has its number by now.

    A number comes back after a while, and at once in a container that is started again, where
    this process may itself have the number of the one that is gone.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and is somebody else's
        pass
    return None in (began, now := _began(pid)) or began == now


def _began(pid: int) -> str | None:
    """When a process began: this start of the system, and its clock's ticks since.

    None where the system does not say (it is not Linux), or the process is gone.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The 22nd field (proc_pid_stat(5)); the second, a name in brackets, may hold blanks.
    return f"{boot} {state.rpartition(')')[2].split()[19]}"
