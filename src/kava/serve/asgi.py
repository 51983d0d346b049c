"""ASGI types, and a helper for middleware that has already read the request body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Scope, Receive, Send = (
    dict[str, Any],
    Callable[[], Awaitable[Any]],
    Callable[[Any], Awaitable[None]],
)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields `body` as one message, and then whatever `receive` yields."""
    given = False

    async def replayed() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
