"""A function that tells what it is doing, as a generator of what it tells."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class _Left(Exception):
    """Nobody listens any more."""


def as_it_happens(work: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """Yield what `work` tells, when it tells it.

    `work(tell)` runs in a thread of its own, and only while the next item is asked for: between
    two items it stands still, so whoever shows an item takes no time from it. What it raises is
    raised here. Where the generator is closed, `work` ends at its next word.
    """
    told: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    go_on, left = threading.Semaphore(0), threading.Event()

    def tell(item: T) -> None:
        told.put(("item", item))
        go_on.acquire()
        if left.is_set():
            raise _Left

    def run() -> None:
        try:
            work(tell)
        except _Left:
            pass
        except BaseException as error:
            told.put(("error", error))
        else:
            told.put(("end", None))

    thread = threading.Thread(target=run, name="kava-demo", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = told.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
            go_on.release()
    finally:
        left.set()
        go_on.release()
        thread.join()
