"""Handle signals that ask this process to stop, such that its work can be resumed later.

Outside `defer_signals`, a signal ends the work at once, by an exception. Inside, it is kept until
the work has reached a point from which it can be resumed. Training checks for it after each step
(`kava.training.trainer`).

With several processes, a signal may reach only one of them, or each at another time. It is then
always kept, and all processes stop together: at a step boundary, or wherever they all call `check`.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kava.system import distributed

_received: list[int] = []
_listening = False
_deferred = False


class Preempted(BaseException):
    """This process was asked to stop. Not an `Exception`, because nothing has failed."""


@contextmanager
def listen_for(signals: list[int], *numbers: int) -> Iterator[None]:
    """Inside the block, treat the signals `numbers` as requests to stop. Main thread only.

    Args:
        signals: list that gets the signals in order; with several processes, those sent to any.

    Raises:
        Preempted: out of the block, after a stop was requested.
    """
    global _received, _listening
    _received, _listening = signals, True
    before = {number: signal.signal(number, _receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _listening = [], False


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside the block, defer a requested stop until its end, or until `check` is called.

    Raises:
        Preempted: if a stop was requested.
    """
    with _deferring():
        yield
    check()


@contextmanager
def save_on_signal() -> Iterator[None]:
    """Inside the block, SIGTERM ends training at a step boundary, with a checkpoint.

    SIGTERM is sent by clusters, launchers and `kill`; Ctrl-C still ends everything at once. A
    request that arrives after the last step is too late and has no effect. Main thread only.

    Raises:
        Preempted: if training was ended.
    """
    with listen_for([], signal.SIGTERM), _deferring():
        yield


def check() -> None:
    """Stop here if a stop was requested. With several processes, all must call this together.

    Raises:
        Preempted: on all processes, if a stop was requested.
    """
    if stop_requested():
        raise Preempted


def stop_if_requested() -> None:
    """Call `check`, unless inside `defer_signals`; for use between repeatable parts of work.

    Raises:
        Preempted: if a stop was requested.
    """
    if not _deferred:
        check()


def stop_requested() -> bool:
    """Whether a stop was requested.

    With several processes, all must call this together; all get the same answer.
    """
    if not _listening or distributed.world_size() == 1:
        return bool(_received)
    if not distributed.any_rank(bool(_received)):
        return False
    for others in distributed.gather(list(_received)):
        _received.extend(number for number in others if number not in _received)
    return True


@contextmanager
def _deferring() -> Iterator[None]:
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def _receive(number: int, frame: Any) -> None:
    _received.append(number)
    # One exception is enough: a second one would interrupt the cleanup after the first.
    if not _deferred and len(_received) == 1 and distributed.world_size() == 1:
        raise Preempted
