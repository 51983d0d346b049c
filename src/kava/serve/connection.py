"""HTTP connections with timeouts that servers usually leave to a proxy, for use without one."""

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kava.serve.limits import Limits
from kava.serve.protocol import RequestError

_FULL = (
    RequestError(503, "too many connections are open; try again later", kind="server_error")
    .body()
    .model_dump_json()
)
_REFUSAL = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    f"Connection: close\r\nContent-Length: {len(_FULL)}\r\n\r\n{_FULL}"
).encode()


def configure_server(app: Any, limits: Limits, **address: Any) -> uvicorn.Config:
    """Return the uvicorn configuration that serves the app within the limits."""
    return uvicorn.Config(
        app,
        http=type("Connection", (_Connection,), {"limits": limits}),
        ws="none",
        access_log=False,
        log_level="error",  # at "warning", uvicorn logs a line for each request that is not HTTP
        server_header=False,
        timeout_graceful_shutdown=int(limits.timeout) + 5,
        **address,
    )


class _Connection(H11Protocol):
    """HTTP connection that is closed when the client keeps the server waiting for too long.

    uvicorn itself only closes connections that are idle between two requests. Here, each of these
    must also happen within `limits.arrival` seconds: the head of a request arrives, the rest of a
    body that was refused arrives, and a client that has stopped reading an answer reads on. Reading
    a whole body is timed in `Gate`, which can still send the client an error.
    """

    limits: Limits

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._owed: str | None = None
        self._clocks: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or refuse it if too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.write(_REFUSAL)
            transport.close()
        else:
            self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers of a closed connection."""
        super().connection_lost(exc)
        for name in list(self._clocks):
            self._stop(name)

    def data_received(self, data: bytes) -> None:
        """Process received bytes; the first bytes of a request start its timer."""
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._set_owed(None)
        super().data_received(data)
        self._update_timer()

    def on_response_complete(self) -> None:
        """Finish a response, and wait for the next request."""
        super().on_response_complete()
        self._update_timer()

    def pause_writing(self) -> None:
        """Start a timer, because the client has stopped reading."""
        super().pause_writing()
        self._start("reading")

    def resume_writing(self) -> None:
        """Stop the timer, because the client reads again."""
        super().resume_writing()
        self._stop("reading")

    def _update_timer(self) -> None:
        them, done = self.conn.their_state, self.conn.our_state is h11.DONE
        refused = them is h11.SEND_BODY and done
        owed = "head" if them is h11.IDLE else "refused body" if refused else None
        if owed != self._owed:
            self._set_owed(owed)

    def _set_owed(self, owed: str | None) -> None:
        self._owed = owed
        self._stop("sending")
        if owed:
            self._start("sending")

    def _start(self, name: str) -> None:
        self._stop(name)
        self._clocks[name] = self.loop.call_later(self.limits.arrival, self.transport.abort)

    def _stop(self, name: str) -> None:
        if clock := self._clocks.pop(name, None):
            clock.cancel()
