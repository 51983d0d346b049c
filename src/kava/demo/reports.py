"""Turn a function that reports its progress into a generator of these reports."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class _Closed(Exception):
    """Raised in the worker when the generator was closed and nobody listens any more."""


def stream_reports(function: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """Yield each item that `function` reports, at the time it is reported.

    `function(emit)` runs in its own thread, and only while the next item is being waited for:
    it pauses between two items, so displaying an item takes no time from it. An exception in
    `function` is raised here. If the generator is closed, `function` ends at its next
    call of `emit`.
    """
    items: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    resume, closed = threading.Semaphore(0), threading.Event()

    def emit(item: T) -> None:
        items.put(("item", item))
        resume.acquire()
        if closed.is_set():
            raise _Closed

    def run() -> None:
        try:
            function(emit)
        except _Closed:
            pass
        except BaseException as error:
            items.put(("error", error))
        else:
            items.put(("end", None))

    thread = threading.Thread(target=run, name="kava-demo", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
            resume.release()
    finally:
        closed.set()
        resume.release()
        thread.join()
