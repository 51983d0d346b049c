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
import signal
import subprocess
import sys
import tempfile
from threading import Lock

from kava.errors import KavaError

LONGEST = 2_000  # maximum number of characters of a text

_lock = Lock()
_worker: _Worker | None = None


def agrees(text: str, gold: str) -> bool:
    """Whether math-verify finds `gold` in `text`.

    The result is False if it takes more than a second of processor time or 4 GiB, or ends the
    process.

    Raises:
        KavaError: if math-verify cannot be started at all.
    """
    global _worker
    with _lock:
        for _ in range(2):  # retries once with a new process, if something else ended the old one
            if _worker is None or _worker.owner != os.getpid():  # a forked process needs its own
                _worker = _Worker()
            answer = _worker.ask(text, gold)
            if answer is not None:
                return answer
            over_time = _worker.close() == -signal.SIGPROF
            _worker = None
            if over_time:
                return False
        return False


class _Worker:
    """A running process of `_symbolic_worker`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        with tempfile.TemporaryFile() as complaints:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kava.evaluation._symbolic_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=_environment(),
                start_new_session=True,  # Ctrl-C must not reach it
            )
            if self.process.stdout.readline() != b"ready\n":
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
            self.process.stdin.write(json.dumps([text, gold]).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> int:
        """End the process, if it has not ended, and return its exit status."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


def _environment() -> dict[str, str]:
    """Return this process's environment, with its import path and a fixed hash seed."""
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    fixed = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}
    return {**os.environ, **fixed, "PYTHONWARNINGS": "ignore"}


@atexit.register
def _end() -> None:
    if _worker is not None and _worker.owner == os.getpid():
        _worker.close()
