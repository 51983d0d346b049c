"""Call math-verify from any thread, deterministically and with limits on time and memory.

math-verify (Hugging Face, 0.9) reads LaTeX and expressions with sympy. Its own time-out is a signal
alarm: only the main thread can set one, and `9^9^9` or an integral outlive it. It therefore runs in
a separate process, which is started when it is first needed and whose limits the operating system
enforces.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

from kava.errors import KavaError

MAX_CHARS = 2_000  # maximum number of characters of a text
WALL_SECONDS = 30.0  # for one text, on a machine of any load; processor time usually ends first
START_SECONDS = 120.0
TIME_OUTS = 20  # in the answers that are scored together; then no more are judged

_lock = Lock()
_worker: _Worker | None = None


@dataclass
class TimeoutCounts:
    """What became of the texts in a block of `counting`.

    Args:
        timed_out: texts that took too long or ended the process, and count as wrong.
        skipped: texts after `TIME_OUTS` of those, which were not judged and count as wrong.
    """

    timed_out: int = 0
    skipped: int = 0

    def note(self) -> str | None:
        """Return how many texts were not judged, or None if all were."""
        if not self.timed_out:
            return None
        ended = f"math_verify: {self.timed_out:,} answers took too long to judge"
        if self.skipped:
            ended += f", and then {self.skipped:,} more were not judged"
        return f"{ended}; all of them count as incorrect"


_judged: TimeoutCounts | None = None


@contextlib.contextmanager
def count_timeouts() -> Iterator[TimeoutCounts]:
    """Count the time-outs of `is_equivalent` in the block; after `TIME_OUTS`, it returns False."""
    global _judged
    before, _judged = _judged, TimeoutCounts()
    try:
        yield _judged
    finally:
        _judged = before


def is_equivalent(text: str, gold: str) -> bool:
    """Whether math-verify finds `gold` in `text`.

    The result is False if it takes more than a second of processor time, 30 seconds on the clock or
    4 GiB, or ends the process; and, inside `count_timeouts`, after `TIME_OUTS` time-outs.

    Raises:
        KavaError: if math-verify cannot be started at all.
    """
    global _worker
    with _lock:
        if _judged is not None and _judged.timed_out >= TIME_OUTS:
            _judged.skipped += 1
            return False
        for _ in range(2):  # retries once with a new process, if something else ended the old one
            if _worker is None or _worker.owner != os.getpid():  # a forked process needs its own
                _worker = _Worker()
            answer = _worker.ask(text, gold)
            if answer is not None:
                return answer
            over_time = _worker.close() == -signal.SIGPROF or _worker.stalled
            _worker = None
            if over_time:
                break
        if _judged is not None:
            _judged.timed_out += 1
        return False


class _Worker:
    """A running process of `_symbolic_worker`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.stalled = False
        with tempfile.TemporaryFile() as complaints:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kava.evaluation._symbolic_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=_environment(),
                start_new_session=True,  # Ctrl-C must not reach it
            )
            assert self.process.stdin is not None and self.process.stdout is not None
            self.input, self.output = self.process.stdin, self.process.stdout
            if self._read_line(START_SECONDS) != b"ready\n":
                self.close()
                complaints.seek(0)
                last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise KavaError(
                    f"math-verify cannot be started ({last}); pip install math-verify",
                    code="evaluation.no-math-verify",
                    key="math-verify",
                )

    def ask(self, text: str, gold: str) -> bool | None:
        """Ask one question; return None if the process ended because of it."""
        try:
            self.input.write(json.dumps([text, gold]).encode() + b"\n")
            self.input.flush()
            line = self._read_line(WALL_SECONDS)
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def _read_line(self, seconds: float) -> bytes:
        """Read a line; end the process and return nothing if there is none within the time."""
        if not select.select([self.output], [], [], seconds)[0]:
            self.stalled = True
            self.process.kill()
            return b""
        return self.output.readline()

    def close(self) -> int:
        """End the process, if it has not ended, and return its exit status."""
        with contextlib.suppress(OSError):
            self.input.close()
        self.output.close()
        return self.process.wait()


def _environment() -> dict[str, str]:
    """Return the environment of the worker: no access tokens, and a fixed hash seed.

    The paths of shared libraries are kept, because Python itself may need them to start.
    """
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    fixed = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}
    kept = {name: os.environ[name] for name in _LIBRARIES if name in os.environ}
    return {**kept, **fixed, "PYTHONWARNINGS": "ignore"}


_LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@atexit.register
def _close_worker() -> None:
    if _worker is not None and _worker.owner == os.getpid():
        _worker.close()
