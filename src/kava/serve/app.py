"""The service's routes: OpenAI's `/v1/...`, `/health`, `/metrics`."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from kava.errors import KavaError
from kava.model import Reasoner
from kava.serve.batcher import ERROR, TIMEOUT, Batcher, Job, Piece, QueueFull
from kava.serve.limits import Limits
from kava.serve.metrics import Metrics
from kava.serve.protocol import (
    CHAT,
    TEXT,
    ChatRequest,
    CompletionRequest,
    Form,
    Refused,
    Request,
    usage,
)

LETTERS_PER_TOKEN = 32  # a question with more letters than this per allowed token is not even read


def create_app(
    reasoner: Reasoner, name: str, limits: Limits | None = None, api_key: str | None = None
) -> FastAPI:
    """The service for one reasoner, called `name` in requests.

    Raises:
        KavaError: the backbone has no room for a question and answer of the allowed length.
    """
    limits = fitted(reasoner, limits or Limits())
    metrics = Metrics()
    batcher = Batcher(
        reasoner, limits.batch_size, limits.delay, limits.queue_length, metrics.answered
    )
    metrics.watch(batcher)
    service = _Service(reasoner, name, limits, batcher, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.stopping = True
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="kava", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.batcher = batcher
    _handle_errors(app)
    _add_routes(app, service)
    app.add_middleware(_Gate, limits=limits, api_key=api_key, metrics=metrics)
    return app


def fitted(reasoner: Reasoner, limits: Limits) -> Limits:
    """The limits, with questions no longer than the backbone's positions leave room for.

    Raises:
        KavaError: they leave none.
    """
    positions = getattr(reasoner.lm.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return limits
    latents = reasoner.recipe.num_latents + 2 if reasoner.method.uses_latents else 0
    room = positions - latents - len(reasoner.encoder.prompt) - limits.new_tokens
    if room < 1:
        raise KavaError(
            f"serve: the backbone has {positions} positions, which leaves no room for a question "
            f"beside {limits.new_tokens} new tokens; lower --max-new-tokens"
        )
    return Limits(**{**vars(limits), "question_tokens": min(limits.question_tokens, room)})


class _Service:
    """What the routes share."""

    def __init__(
        self, reasoner: Reasoner, name: str, limits: Limits, batcher: Batcher, metrics: Metrics
    ):
        self.reasoner, self.name, self.limits = reasoner, name, limits
        self.batcher, self.metrics = batcher, metrics
        self.stopping = False
        self.created = int(time.time())

    def model(self) -> dict[str, Any]:
        """The one model, as `/v1/models` lists it."""
        told = {"id": self.name, "object": "model", "created": self.created, "owned_by": "kava"}
        return {**told, "method": self.reasoner.recipe.method}

    async def answer(self, request: Request, form: Form, http: HttpRequest) -> Response:
        """Check, queue, and wait for the answers or stream them.

        Raises:
            Refused: whatever stands in the way.
        """
        request.check()
        if request.model != self.name:
            raise Refused(
                404, f"there is no model '{request.model}' here; there is '{self.name}'", "model"
            )
        questions = request.questions()
        for question in questions:
            self._check_question(question)
        self._check_iterations(request)
        answers = _Answers()
        jobs = [
            Job(
                question=question,
                emit=partial(answers.put, i * (request.n or 1) + k),
                max_new_tokens=self._new_tokens(request),
                stop=request.stops,
                sampling=request.sampling,
                num_iterations=request.num_iterations,
                stream=bool(request.stream),
                deadline=time.monotonic() + self.limits.timeout,
            )
            for i, question in enumerate(questions)
            for k in range(request.n or 1)
        ]
        try:
            self.batcher.submit(jobs)
        except QueueFull as full:
            self.metrics.rejected.inc()
            wait = {"Retry-After": str(full.retry_after)}
            raise Refused(429, str(full), kind="rate_limit_error", headers=wait) from None
        except KavaError as error:
            raise Refused(503, str(error), kind="server_error") from None
        if request.stream:
            events = self._events(request, form, jobs, answers, len(questions))
            return StreamingResponse(events, media_type="text/event-stream")
        return await self._whole(form, jobs, answers, len(questions), http)

    async def _whole(
        self, form: Form, jobs: Sequence[Job], answers: _Answers, questions: int, http: HttpRequest
    ) -> Response:
        try:
            last = await answers.all_of(len(jobs), http)
        finally:
            for job in jobs:
                job.cancelled = True
        if last is None:
            return Response(status_code=499)  # nobody is there to read it
        for piece in last:
            _raise_for(piece)
        choices = [form.choice(i, piece) for i, piece in enumerate(last)]
        body = form.start(self.name, stream=False)
        return JSONResponse({**body, "choices": choices, "usage": usage(last, questions)})

    async def _events(
        self, request: Request, form: Form, jobs: Sequence[Job], answers: _Answers, questions: int
    ) -> AsyncIterator[str]:
        begin = form.start(self.name, stream=True)
        empty = {"usage": None} if request.wants_usage else {}
        last: dict[int, Piece] = {}
        begun: set[int] = set()
        try:
            while len(last) < len(jobs):
                index, piece = await answers.get()
                try:
                    _raise_for(piece)
                except Refused as refused:
                    yield _event(refused.body())
                    break
                delta = form.delta(index, piece, index not in begun)
                begun.add(index)
                yield _event({**begin, "choices": [delta], **empty})
                if piece.reason:
                    last[index] = piece
            else:
                if request.wants_usage:
                    counted = usage([last[i] for i in range(len(jobs))], questions)
                    yield _event({**begin, "choices": [], "usage": counted})
            yield "data: [DONE]\n\n"
        finally:
            for job in jobs:
                job.cancelled = True

    def _check_question(self, question: str) -> None:
        allowed = self.limits.question_tokens
        if not question.strip():
            raise Refused(400, "the question is empty")
        if "\ufffd" in question or any("\ud800" <= letter <= "\udfff" for letter in question):
            raise Refused(400, "the question holds broken characters; send UTF-8")
        short = len(question) <= allowed * LETTERS_PER_TOKEN
        tokens = len(self.reasoner.encoder.question(question)) if short else None
        if tokens is None or tokens > allowed:
            has = f"has {tokens:,} tokens" if tokens else f"has {len(question):,} letters"
            raise Refused(400, f"the question {has}; at most {allowed:,} tokens are answered")

    def _check_iterations(self, request: Request) -> None:
        if request.num_iterations is not None and not self.reasoner.method.iterates:
            method = self.reasoner.recipe.method
            raise Refused(
                400, f"the method '{method}' of this model does not iterate", "num_iterations"
            )

    def _new_tokens(self, request: Request) -> int:
        wanted, allowed = request.limit(), self.limits.new_tokens
        if wanted is not None and wanted > allowed:
            raise Refused(400, f"at most {allowed:,} new tokens per answer", "max_tokens")
        return wanted or allowed


class _Answers:
    """Pieces on their way from the model's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def put(self, index: int, piece: Piece) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop is closed: the service has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

    async def get(self) -> tuple[int, Piece]:
        """The next piece."""
        return await self._queue.get()

    async def all_of(self, count: int, http: HttpRequest) -> list[Piece] | None:
        """The last piece of each answer, in order; None if the client leaves before."""
        found: dict[int, Piece] = {}
        left = asyncio.create_task(_disconnected(http))
        try:
            while len(found) < count:
                getting = asyncio.create_task(self._queue.get())
                await asyncio.wait({getting, left}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    return None
                index, piece = getting.result()
                found[index] = piece
        finally:
            left.cancel()
        return [found[i] for i in range(count)]


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _raise_for(piece: Piece) -> None:
    if piece.reason == TIMEOUT:
        raise Refused(504, "the answer took too long", kind="timeout")
    if piece.reason == ERROR:
        raise Refused(500, "the model failed on this question", kind="server_error")


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


# -- routes and errors ---------------------------------------------------------------------------

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "what is wrong with the request"},
    401: {"description": "no or another API key"},
    404: {"description": "no such model or address"},
    408: {"description": "the request did not arrive in time"},
    413: {"description": "the request is too large"},
    429: {"description": "too many questions are waiting; see Retry-After"},
    503: {"description": "the service is stopping"},
    504: {"description": "the answer took too long"},
}


def _add_routes(app: FastAPI, service: _Service) -> None:
    @app.post("/v1/chat/completions", responses=_ERRORS, response_model=None)
    async def chat(request: ChatRequest, http: HttpRequest) -> Response:
        """Answer the question of one user message."""
        return await service.answer(request, CHAT, http)

    @app.post("/v1/completions", responses=_ERRORS, response_model=None)
    async def completions(request: CompletionRequest, http: HttpRequest) -> Response:
        """Answer a question, or several."""
        return await service.answer(request, TEXT, http)

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [service.model()]}

    @app.get("/v1/models/{model:path}", responses=_ERRORS)
    async def model(model: str) -> dict[str, Any]:
        """The one model, by its name."""
        if model != service.name:
            raise Refused(404, f"there is no model '{model[:128]}' here", "model")
        return service.model()

    @app.get("/health", responses=_ERRORS)
    async def health() -> dict[str, Any]:
        """Whether questions are taken."""
        if service.stopping:
            raise Refused(503, "the service is stopping", kind="server_error")
        return {"status": "ok", "waiting": service.batcher.waiting}

    @app.get("/metrics", responses=_ERRORS, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: HttpRequest, error: Refused) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            why = first.get("ctx", {}).get("error", "")
            return JSONResponse(
                Refused(400, f"the body is not valid JSON: {why}"[:512]).body(), 400
            )
        where = ".".join(str(part) for part in first["loc"] if part != "body")[:128]
        message = f"{where}: {first['msg']}" if where else first["msg"]
        return JSONResponse(Refused(400, message[:512], where or None).body(), 400)

    @app.exception_handler(HTTPException)
    async def other(_: HttpRequest, error: HTTPException) -> Response:
        refused = Refused(error.status_code, str(error.detail))
        return JSONResponse(refused.body(), error.status_code, error.headers)


Scope, Receive, Send = (
    dict[str, Any],
    Callable[[], Awaitable[Any]],
    Callable[[Any], Awaitable[None]],
)


class _Gate:
    """Before anything else: the key, the body's size and arrival, and a count of every request."""

    def __init__(self, app: Any, limits: Limits, api_key: str | None, metrics: Metrics):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            replay = await self._body(scope, receive)
            await self.app(scope, replay, watched)
        except Refused as refused:
            response = JSONResponse(refused.body(), refused.status, refused.headers)
            await response(scope, receive, watched)
        finally:
            self.metrics.count(scope["path"], status)

    def _check_key(self, scope: Scope) -> None:
        if self.key is None or scope["path"] == "/health":
            return
        given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        word, _, key = given.partition(b" ")
        if word.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.key):
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(
                401, "give the API key as a bearer token", None, "invalid_api_key", headers
            )

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the whole body, within limits; what replays it."""
        told = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        allowed = self.limits.body_bytes
        too_large = Refused(413, f"a request may have at most {allowed:,} bytes")
        if told.isdigit() and int(told) > allowed:
            raise too_large

        async def read() -> bytes:
            chunks, size = [], 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the client left")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > allowed:
                    raise too_large
                if not message.get("more_body"):
                    return b"".join(chunks)

        try:
            body = await asyncio.wait_for(read(), self.limits.timeout)
        except asyncio.TimeoutError:
            raise Refused(408, "the request did not arrive in time") from None
        whole = {"type": "http.request", "body": body, "more_body": False}
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return whole

        return replay
