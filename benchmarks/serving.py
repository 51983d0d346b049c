"""What the benchmarks of `kava serve` share: the service in its own process, and its memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kava.system.environment import provenance


class Memory:
    """Resident megabytes of a process, read every so many seconds."""

    def __init__(self, pid: int, every: float = 0.2):
        self.pid, self.every, self.values = pid, every, [resident_mb(pid)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.wait(self.every):
            self.values.append(resident_mb(self.pid))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB, from `/proc` (Linux only)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return round(int(next(x for x in lines if x.startswith("VmRSS")).split()[1]) / 1024, 1)


@contextmanager
def service(run: str, name: str, *words: str, key: str | None = None) -> Iterator[tuple[int, int]]:
    """`kava serve` in a process of its own, ready; its port and process id.

    Raises:
        SystemExit: it does not start, or does not end by itself when it is told to.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kava", "serve", run, "--port", str(port), "--name", name]
    environment = {**os.environ, **({} if key is None else {"KAVA_API_KEY": key})}
    server = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, env=environment)
    try:
        _wait(port, server)
        yield port, server.pid
        server.terminate()
        if server.wait(60) not in (0, -15):
            raise SystemExit(f"the service ended with status {server.returncode}")
    finally:
        server.kill()
        server.wait()


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
            return
        except OSError:
            if server.poll() is not None:
                raise SystemExit("the service did not start") from None
            time.sleep(0.1)
    raise SystemExit("the service did not start within a minute")


def offline_answers(run: str, count: int, new_tokens: int) -> dict[str, str]:
    """Questions of the synthetic task, each answered on its own without a service."""
    from kava.data.tasks import load_task
    from kava.reasoning.open import open_reasoner

    reasoner = open_reasoner(run)
    questions = [example.question for example in load_task("synthetic", limit=count).examples]
    return {q: reasoner.answer(reasoner.think([q]), new_tokens)[0].text for q in questions}


def about(*packages: str) -> dict[str, Any]:
    """`provenance`, with the versions of what serves and of further packages."""
    told = provenance()
    for package in ("fastapi", "uvicorn", "h11", *packages):
        told["versions"][package] = version(package)
    return told
