"""Run a sweep on several GPUs of this machine, one run on each at a time.

Each run gets a process of its own, which sees a single GPU. A process that ends without a result,
for example because the system killed it, makes only its own run fail.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from rich.console import Console

from kava.sweeps.attempt import FAILED, Outcome, Run, Scoring, attempt
from kava.system import distributed, signals
from kava.system.text import print_text

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` has them.

    Empty if the CPU was requested, or if this process is one of several that a launcher started.
    """
    if distributed.world_size() > 1 or distributed.cpu_requested():
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return named[:count] or [str(number) for number in range(count)]


@dataclass
class _Working:
    """A run in progress: its position among all runs, its GPU, and the process that does it."""

    number: int
    gpu: str
    process: BaseProcess
    result: Connection

    def outcome(self, run: Run) -> Outcome:
        """Return the outcome that the process sent, or why it sent none."""
        try:
            return Outcome(run, *self.result.recv())
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            ended = "was killed by the system" if code == -signal.SIGKILL else f"ended with {code}"
            return Outcome(run, FAILED, f"its process on GPU {self.gpu} {ended}")


def run_all(
    gpus: Sequence[str], runs: Sequence[Run], scoring: Scoring, console: Console
) -> list[Outcome]:
    """Do each run on the next GPU that is free; a failure does not stop the others.

    Args:
        gpus: names for `CUDA_VISIBLE_DEVICES`, one for each process that works at the same time.

    Returns:
        the outcomes, in the order of the runs.

    Raises:
        Preempted: if this process was asked to stop. The runs in progress have been asked, too, and
            have ended.
    """
    outcomes: dict[int, Outcome] = {}
    free, waiting, working = list(gpus), list(range(len(runs))), list[_Working]()
    try:
        while waiting or working:
            while free and waiting:
                number = waiting.pop(0)
                working.append(_start(number, free.pop(0), runs, scoring, console))
            ready = wait([one.result for one in working])
            for one in [one for one in working if one.result in ready]:
                outcomes[one.number] = one.outcome(runs[one.number])
                one.process.join()
                working.remove(one)
                free.append(one.gpu)
    finally:
        for one in working:  # this process was asked to stop
            one.process.terminate()
        for one in working:
            one.process.join()
    return [outcomes[number] for number in range(len(runs))]


def _start(
    number: int, gpu: str, runs: Sequence[Run], scoring: Scoring, console: Console
) -> _Working:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    given = (scoring.names, scoring.files, scoring.limit)
    mark = f"[{number + 1}/{len(runs)}] GPU {gpu}: {runs[number].folder}"
    process = context.Process(
        target=_work, args=(runs[number], given, mark, console.quiet, theirs), daemon=False
    )
    with _environment(_VISIBLE, gpu):
        process.start()
    theirs.close()  # so that reading ends when the process does
    return _Working(number, gpu, process, ours)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for the processes started inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _work(run: Run, scoring: Any, mark: str, quiet: bool, result: Connection) -> None:
    """Do one run in this process, and send its outcome."""
    console = Console(quiet=quiet, force_interactive=False)
    try:
        with signals.listen_for([], signal.SIGTERM):
            say = partial(print_text, console, mark)
            outcome = attempt(run, Scoring(*scoring), say, console)
    except signals.Preempted:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    result.send((outcome.status, outcome.reason))
