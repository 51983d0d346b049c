"""Middleware that allows only those requests to gradio that the page needs.

gradio accepts uploads, fetches URLs, serves files from its cache, and accepts a file path or a URL
in place of a value in the data of any function. The page needs none of this, so such requests are
refused before they reach gradio. Routes are checked against a list of those that the page needs, so
that routes added by later versions of gradio are closed too; data is checked by type.
"""

import json
from math import ceil
from typing import Any

from starlette.responses import PlainTextResponse

from kava.demo.login_limiter import LoginLimiter
from kava.serve.asgi import CLOSE, Receive, Scope, Send, length_error, replay
from kava.serve.hosts import Hosts

BODY_BYTES = 1_000_000
QUEUE_JOIN = "/gradio_api/queue/join"
#: Routes for GET and HEAD: the page, its settings and files, and the results of functions.
GET_PATHS = {
    "/", "/config", "/config/", "/favicon.ico", "/logout", "/manifest.json", "/robots.txt",
    "/theme.css", "/gradio_api/app_id", "/gradio_api/info", "/gradio_api/login_check",
    "/gradio_api/queue/data", "/gradio_api/queue/status", "/gradio_api/startup-events",
}  # fmt: skip
GET_PREFIXES = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
LOGIN_PATHS = {"/login", "/login/"}
POST_PATHS = {*LOGIN_PATHS, QUEUE_JOIN, "/gradio_api/cancel", "/gradio_api/reset"}


class RequestRejected(Exception):
    """A request that is refused, with an HTTP status and a message of one line."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, headers


class PageMiddleware:
    """ASGI middleware that refuses foreign Hosts and Origins, and whatever the page does not need.

    The page needs only certain routes, and only plain values as data. Passwords can be guessed only
    as fast as `LoginLimiter` allows.
    """

    def __init__(self, app: Any, hosts: Hosts):
        self.app, self.hosts = app, hosts
        self.login_limiter = LoginLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an ASGI request, then pass it on to gradio or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            if wrong := length_error(scope):
                raise RequestRejected(400, wrong, CLOSE)
            if wrong := self.hosts.host_error(scope):
                raise RequestRejected(400, wrong)
            if wrong := self.hosts.foreign_header(scope):
                raise RequestRejected(403, wrong)
            check_route(scope)
            if scope["method"] == "POST":
                body = await _read(receive)
                if scope["path"] == QUEUE_JOIN:
                    check_data(body)
                receive = replay(body, receive)
                if scope["path"] in LOGIN_PATHS:
                    send = self._limit_logins(scope, send)
        except RequestRejected as closed:
            refusal = PlainTextResponse(f"kava demo: {closed}\n", closed.status, closed.headers)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _limit_logins(self, scope: Scope, send: Send) -> Send:
        """Count a login attempt; return a `send` that refunds it if the login succeeds.

        Raises:
            RequestRejected: there were too many wrong passwords.
        """
        address = (scope.get("client") or ("",))[0]
        if wait := ceil(self.login_limiter.attempt(address)):
            raise RequestRejected(
                429, f"too many wrong passwords; try again in {wait} s", {"Retry-After": str(wait)}
            )

        async def send_and_watch(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self.login_limiter.refund(address)
            await send(message)

        return send_and_watch


def check_route(scope: Scope) -> None:
    """Check that the page needs this route.

    Raises:
        RequestRejected: the page does not need it.
    """
    path, method = scope["path"], scope.get("method", "a WebSocket to")
    if method in ("GET", "HEAD"):
        needed = path in GET_PATHS or path.startswith(GET_PREFIXES)
    else:
        needed = method == "POST" and path in POST_PATHS
    if not needed:
        shown = ascii(path[:128])
        raise RequestRejected(404, f"{method} {shown} is not served; for programs, use kava serve")


def check_data(body: bytes) -> None:
    """Check that a function call has only plain values, since gradio reads a dictionary as a file.

    Raises:
        RequestRejected: a value is a list or an object, or the body is not in gradio's format.
    """
    try:
        request = json.loads(body)  # parsed as FastAPI parses it
    except (ValueError, RecursionError):
        raise RequestRejected(400, "the body is not valid JSON") from None
    data = request.get("data") if isinstance(request, dict) else None
    if not isinstance(data, list):
        raise RequestRejected(400, 'the body must be an object with a list as "data"')
    for i, value in enumerate(data):
        if value is not None and not isinstance(value, str | int | float):  # bool is an int
            kind = "a list" if isinstance(value, list) else "an object"
            raise RequestRejected(
                400,
                f"data[{i}] is {kind}; must be a text, a number, true, false or null, not a file",
            )


async def _read(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestRejected(400, "the client disconnected")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES:
            raise RequestRejected(413, f"a request may have at most {BODY_BYTES:,} bytes")
    return bytes(body)
