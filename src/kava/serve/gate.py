"""Middleware that checks each request's Host header, API key and body limits, and counts it."""

import asyncio
import hmac
from typing import Any

from kava.serve.asgi import CLOSE, Receive, Scope, Send, length_error, replay
from kava.serve.hosts import Hosts
from kava.serve.limits import Limits
from kava.serve.metrics import Metrics
from kava.serve.protocol import RequestError


class Gate:
    """ASGI middleware before all routes that checks Host, key and body, and counts requests.

    The body is limited in size and in the time within which it must arrive.
    """

    def __init__(
        self, app: Any, limits: Limits, api_key: str | None, metrics: Metrics, hosts: Hosts
    ):
        self.app, self.limits, self.metrics, self.hosts = app, limits, metrics, hosts
        self.key = None if api_key is None else api_key.encode()
        self.body_bytes = 0  # total bytes of request bodies being read or answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an ASGI request, then pass it on to the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        status = 500

        async def send_and_count(message: Any) -> None:
            nonlocal status
            if message["type"].endswith("http.response.start"):
                status = message["status"]
            await send(message)

        body = bytearray()
        try:
            if wrong := length_error(scope):
                raise RequestError(400, wrong, headers=CLOSE)
            if wrong := self.hosts.host_error(scope):
                raise RequestError(400, wrong)
            self._check_key(scope)
            if scope["type"] == "http":  # a WebSocket has no body; no route takes one
                await self._read(scope, receive, body)
                receive = replay(bytes(body), receive)
            await self.app(scope, receive, send_and_count)
        except RequestError as refused:
            await refused.response()(scope, receive, send_and_count)
        finally:
            self.body_bytes -= len(body)
            self.metrics.count_request(scope["path"], status)

    def _check_key(self, scope: Scope) -> None:
        if self.key is None or scope["path"] == "/health":
            return
        header = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.key):
            headers = {"WWW-Authenticate": "Bearer"}
            raise RequestError(
                401, "send the API key as a bearer token", None, "invalid_api_key", headers
            )

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Read the whole request body into `body`, within the limits of size and time."""
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            raise self._too_large()
        try:
            await asyncio.wait_for(
                self._read_rest(receive, body), min(self.limits.arrival, self.limits.timeout)
            )
        except TimeoutError:
            raise RequestError(408, "the request did not arrive in time") from None

    async def _read_rest(self, receive: Receive, body: bytearray) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the client disconnected")
            part, more = message.get("body", b""), message.get("more_body", False)
            body += part
            self.body_bytes += len(part)
            if len(body) > self.limits.body_bytes:
                raise self._too_large()
            if self.body_bytes > self.limits.held_bytes:
                wait = {"Retry-After": "1"}
                raise RequestError(
                    503,
                    "too many requests are being read; try again later",
                    kind="server_error",
                    headers=wait,
                )

    def _too_large(self) -> RequestError:
        return RequestError(413, f"a request may have at most {self.limits.body_bytes:,} bytes")
