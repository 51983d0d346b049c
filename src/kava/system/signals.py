"""A signal that asks this process to stop, so that its work can go on later.

Outside of `deferred` it ends the work at once, by an exception; inside it is kept until the work
has reached a point from which it can go on. A training looks for it after each step
(`kava.training.trainer`).

Of several processes a signal may reach one alone, or each at another time. It is then always kept,
and they stop together: at a step's boundary, or wherever else all of them ask (`check`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kava.system import distributed

_received: list[int] = []
_listening = False
_kept = False


class Preempted(BaseException):
    """This process was asked to stop. Not an `Exception`: nothing has failed."""


@contextmanager
def listen_for(asked: list[int], *numbers: int) -> Iterator[None]:
    """Inside the block the signals `numbers` ask for a stop. Main thread only.

    Args:
        asked: takes those that came, in order; of several processes, to any of them.

    Raises:
        Preempted: out of the block, once it was asked for.
    """
    global _received, _listening
    _received, _listening = asked, True
    before = {number: signal.signal(number, _receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _listening = [], False


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside the block nothing is interrupted; at its end, or by `check`, the stop comes about.

    Raises:
        Preempted: a stop was asked for.
    """
    with _keeping():
        yield
    check()


@contextmanager
def save_on_signal() -> Iterator[None]:
    """Inside the block SIGTERM ends a training at a step's boundary, with a checkpoint.

    A cluster, a launcher and `kill` send it; Ctrl-C still ends everything at once. What is asked
    for when the last step is done comes too late and changes nothing. Main thread only.

    Raises:
        Preempted: the training was ended.
    """
    with listen_for([], signal.SIGTERM), _keeping():
        yield


def check() -> None:
    """Stop here, if that was asked for. Of several processes all call this together.

    Raises:
        Preempted: it was; on all processes.
    """
    if is_asked():
        raise Preempted


def stop_if_asked() -> None:
    """Between two parts of a work that can be done anew: `check`, unless inside `deferred`.

    Raises:
        Preempted: a stop was asked for.
    """
    if not _kept:
        check()


def is_asked() -> bool:
    """Whether a stop was asked for. Of several processes all call this together, and agree."""
    if not _listening or distributed.world_size() == 1:
        return bool(_received)
    if not distributed.any_rank(bool(_received)):
        return False
    for others in distributed.gather(list(_received)):
        _received.extend(number for number in others if number not in _received)
    return True


@contextmanager
def _keeping() -> Iterator[None]:
    global _kept
    _kept = True
    try:
        yield
    finally:
        _kept = False


def _receive(number: int, frame: Any) -> None:
    _received.append(number)
    # One exception is enough: a second would break off the clearing up after the first.
    if not _kept and len(_received) == 1 and distributed.world_size() == 1:
        raise Preempted
