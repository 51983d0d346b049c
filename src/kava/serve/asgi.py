"""ASGI types, and what both services do with a request before it is routed."""

from collections.abc import Awaitable, Callable
from typing import Any

Scope, Receive, Send = (
    dict[str, Any],
    Callable[[], Awaitable[Any]],
    Callable[[Any], Awaitable[None]],
)


#: Closes a connection after a response: whatever follows on it may not be the next request.
CLOSE = {"Connection": "close"}


def length_error(scope: Scope) -> str | None:
    """Return what is wrong with the length of the body, or None.

    Content-Length beside Transfer-Encoding is how requests are smuggled: a proxy may read the body
    by one of them and this service by the other, and then disagree on where the next request begins
    (RFC 9112, section 6.3).
    """
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        return "a request must not have both Content-Length and Transfer-Encoding"
    return None


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields `body` as one message, and then whatever `receive` yields."""
    replayed = False

    async def receive_again() -> Any:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
