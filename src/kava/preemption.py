"""A signal that asks this process to stop, so that its work can go on later.

Outside of `deferred` it ends the work at once, by an exception; inside it is kept until the work
has reached a point from which it can go on. A training looks for it after each step
(`kava.trainer`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_received: list[int] = []
_kept = False


class Preempted(BaseException):
    """This process was asked to stop. Not an `Exception`: nothing has failed."""


@contextmanager
def listening(asked: list[int], *numbers: int) -> Iterator[None]:
    """Inside the block the signals `numbers` ask for a stop. Main thread only.

    Args:
        asked: takes those that came, in order.

    Raises:
        Preempted: out of the block, once it was asked for.
    """
    global _received
    _received = asked
    before = {number: signal.signal(number, _receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = []


@contextmanager
def deferred() -> Iterator[None]:
    """Inside the block nothing is interrupted; at its end, or by `check`, the stop comes about.

    Raises:
        Preempted: a stop was asked for.
    """
    global _kept
    _kept = True
    try:
        yield
    finally:
        _kept = False
    check()


def check() -> None:
    """Stop here, if that was asked for.

    Raises:
        Preempted: it was.
    """
    if _received:
        raise Preempted


def is_asked() -> bool:
    """Whether a stop was asked for."""
    return bool(_received)


def _receive(number: int, frame: Any) -> None:
    _received.append(number)
    # One exception is enough: a second would break off the clearing up after the first.
    if not _kept and len(_received) == 1:
        raise Preempted
