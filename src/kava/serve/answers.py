"""How pieces of answers get from the model's thread to the request that waits for them."""

import asyncio
import time
from contextlib import suppress

from fastapi import Request as HttpRequest

from kava.serve.jobs import ERROR, TIMEOUT, Piece
from kava.serve.protocol import RequestError


class Answers:
    """Queue that carries pieces of answers from the model's thread to the event loop.

    Args:
        deadline: time, as given by `time.monotonic`, after which waiting for a piece fails.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def put(self, index: int, piece: Piece) -> None:
        """Add a piece to the queue; may be called from any thread."""
        with suppress(RuntimeError):  # the event loop is closed: the service has stopped
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

    async def get(self) -> tuple[int, Piece]:
        """Return the next piece with the index of its answer.

        Raises:
            RequestError: the piece did not arrive before the deadline.
        """
        try:
            return await asyncio.wait_for(self._queue.get(), self._seconds_left())
        except TimeoutError:
            raise _timeout_error() from None

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    async def wait_for_all(self, count: int, http: HttpRequest) -> list[Piece] | None:
        """Return the last piece of each answer, in order, or None if the client disconnects before.

        Raises:
            RequestError: a piece did not arrive before the deadline.
        """
        last: dict[int, Piece] = {}
        leaving = asyncio.create_task(_wait_for_disconnect(http))
        try:
            while len(last) < count:
                getting = asyncio.create_task(self._queue.get())
                await asyncio.wait(
                    {getting, leaving},
                    timeout=self._seconds_left(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not getting.done():
                    getting.cancel()
                    if leaving.done():
                        return None
                    raise _timeout_error()
                index, piece = getting.result()
                last[index] = piece
        finally:
            leaving.cancel()
        return [last[i] for i in range(count)]


async def _wait_for_disconnect(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def raise_if_failed(piece: Piece) -> None:
    """Raise `RequestError` for a last piece that is not the end of an answer."""
    if piece.reason == TIMEOUT:
        raise _timeout_error()
    if piece.reason == ERROR:
        raise RequestError(500, "the model failed on this question", kind="server_error")


def _timeout_error() -> RequestError:
    return RequestError(504, "the answer took too long", kind="timeout")
