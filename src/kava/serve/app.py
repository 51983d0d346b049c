"""The routes of the HTTP service: OpenAI's `/v1/...`, `/health` and `/metrics`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from kava.errors import KavaError
from kava.reasoning.context_window import LETTERS_PER_TOKEN, max_question_tokens
from kava.reasoning.reasoner import Reasoner
from kava.serve.batcher import Batcher, QueueFull
from kava.serve.described import ANSWERS, describe
from kava.serve.gate import Gate
from kava.serve.hosts import Hosts
from kava.serve.jobs import ERROR, TIMEOUT, Job, Piece
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
from kava.system.version import __version__

QUICK = 20_000  # characters tokenized in the event loop; longer texts go to another thread
GRACE = 1.0  # seconds to wait beyond the deadline, as a forward pass cannot be interrupted


def create_app(
    reasoner: Reasoner,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Hosts | None = None,
) -> FastAPI:
    """Return the FastAPI application that serves one reasoner, called `name` in requests.

    Args:
        hosts: host names that requests may use; only those of this machine if not given.

    Raises:
        KavaError: a question and an answer of the allowed length do not fit into the backbone's
            context window.
    """
    limits = fit_limits(reasoner, limits or Limits())
    metrics = Metrics()
    batcher = Batcher(reasoner, limits.batch_size, limits.delay, limits.queue_length, metrics.batch)
    metrics.watch(batcher)
    service = _Service(reasoner, name, limits, batcher, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="kava",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat whatever Host header the client sent
    )
    app.state.batcher = batcher
    _handle_errors(app)
    _add_routes(app, service)
    app.add_middleware(
        Gate, limits=limits, api_key=api_key, metrics=metrics, hosts=hosts or Hosts()
    )
    describe(app, name, limits, reasoner.method.iterates, api_key is not None)
    return app


def fit_limits(reasoner: Reasoner, limits: Limits) -> Limits:
    """Return the limits of this model.

    `question_tokens` is lowered to what the backbone's positions allow, and `num_iterations` gets
    its default.

    Raises:
        KavaError: no positions are left for a question.
    """
    most = max_question_tokens(reasoner, "serve", limits.new_tokens, limits.question_tokens)
    iterations = limits.num_iterations
    if iterations is None:
        iterations = max(2 * reasoner.recipe.num_iterations, 1)
    return replace(limits, question_tokens=most, num_iterations=iterations)


class _Service:
    """State and request handling that the routes share."""

    def __init__(
        self, reasoner: Reasoner, name: str, limits: Limits, batcher: Batcher, metrics: Metrics
    ):
        self.reasoner, self.name, self.limits = reasoner, name, limits
        self.batcher, self.metrics = batcher, metrics
        self.no_tokens = len(reasoner.encoder.question(""))  # 1 if the tokenizer adds BOS, else 0
        self.created = int(time.time())

    def model(self) -> dict[str, Any]:
        """Return the served model as an entry of `/v1/models`."""
        told = {"id": self.name, "object": "model", "created": self.created, "owned_by": "kava"}
        return {**told, "method": self.reasoner.recipe.method}

    async def answer(self, request: Request, form: Form, http: HttpRequest) -> Response:
        """Check a request, queue its questions, and wait for the answers or stream them.

        Raises:
            Refused: the request cannot be answered, for whatever reason.
        """
        request.check()
        if request.model != self.name:
            raise Refused(
                404, f"there is no model '{request.model}'; this service has '{self.name}'", "model"
            )
        questions, each = request.questions(), request.n or 1
        most = self.limits.queue_length
        if len(questions) * each > most:
            raise Refused(400, f"at most {most:,} answers per request", "n")
        num_iterations = self._num_iterations(request)
        new_tokens = self._new_tokens(request)
        if sum(map(len, questions)) > QUICK:
            encoded = await asyncio.to_thread(self._encode, questions)
        else:
            encoded = self._encode(questions)
        deadline = time.monotonic() + self.limits.timeout
        answers = _Answers(deadline + GRACE)
        jobs = [
            Job(
                question=question,
                emit=partial(self._emit, answers, i * each + k),
                max_new_tokens=new_tokens,
                stop=request.stops,
                sampling=request.sampling.choice(k),
                num_iterations=num_iterations,
                stream=bool(request.stream),
                deadline=deadline,
            )
            for i, question in enumerate(encoded)
            for k in range(each)
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

    def _emit(self, answers: _Answers, index: int, piece: Piece) -> None:
        """Pass a piece on to the request that waits for it; called from any thread."""
        if piece.reason:
            self.metrics.answered(piece)
        answers.put(index, piece)

    async def _whole(
        self, form: Form, jobs: Sequence[Job], answers: _Answers, questions: int, http: HttpRequest
    ) -> Response:
        try:
            last = await answers.all_of(len(jobs), http)
        finally:
            for job in jobs:
                job.cancelled = True
        if last is None:
            return Response(status_code=499)  # the client has disconnected and will not read it
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
                try:
                    index, piece = await answers.get()
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

    def _encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each question.

        Raises:
            Refused: a question is empty, contains broken characters, or is too long.
        """
        allowed = self.limits.question_tokens
        for question in questions:
            if not question.strip():
                raise Refused(400, "the question is empty")
            if "\ufffd" in question or any("\ud800" <= letter <= "\udfff" for letter in question):
                raise Refused(400, "the question contains invalid characters; send UTF-8")
            if len(question) > allowed * LETTERS_PER_TOKEN:
                raise _too_long(f"{len(question):,} characters", allowed)
        encoded = self.reasoner.encoder.questions(questions)
        for tokens in encoded:
            if len(tokens) == self.no_tokens:
                raise Refused(400, "the question is empty: the tokenizer produces no tokens for it")
            if len(tokens) > allowed:
                raise _too_long(f"{len(tokens):,} tokens", allowed)
        return encoded

    def _num_iterations(self, request: Request) -> int | None:
        """Return the requested number of iterations, or None if it is the recipe's."""
        wanted, allowed = request.num_iterations, self.limits.num_iterations
        recipe = self.reasoner.recipe
        if wanted is not None and not self.reasoner.method.iterates:
            raise Refused(
                400,
                f"the method '{recipe.method}' of this model does not iterate",
                "num_iterations",
            )
        if wanted is not None and allowed is not None and wanted > allowed:
            raise Refused(400, f"at most {allowed} latent iterations", "num_iterations")
        return None if wanted == recipe.num_iterations else wanted

    def _new_tokens(self, request: Request) -> int:
        wanted, allowed = request.limit(), self.limits.new_tokens
        if wanted is not None and wanted > allowed:
            raise Refused(400, f"at most {allowed:,} new tokens per answer", "max_tokens")
        return wanted or allowed


def _too_long(has: str, allowed: int) -> Refused:
    return Refused(400, f"the question has {has}; the limit is {allowed:,} tokens")


class _Answers:
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
            Refused: the piece did not arrive before the deadline.
        """
        try:
            return await asyncio.wait_for(self._queue.get(), self._left())
        except TimeoutError:
            raise _late() from None

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    async def all_of(self, count: int, http: HttpRequest) -> list[Piece] | None:
        """Return the last piece of each answer, in order, or None if the client disconnects before.

        Raises:
            Refused: a piece did not arrive before the deadline.
        """
        found: dict[int, Piece] = {}
        left = asyncio.create_task(_disconnected(http))
        try:
            while len(found) < count:
                getting = asyncio.create_task(self._queue.get())
                await asyncio.wait(
                    {getting, left}, timeout=self._left(), return_when=asyncio.FIRST_COMPLETED
                )
                if not getting.done():
                    getting.cancel()
                    if left.done():
                        return None
                    raise _late()
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
        raise _late()
    if piece.reason == ERROR:
        raise Refused(500, "the model failed on this question", kind="server_error")


def _late() -> Refused:
    return Refused(504, "the answer took too long", kind="timeout")


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


# -- routes and errors ---------------------------------------------------------------------------


def _add_routes(app: FastAPI, service: _Service) -> None:
    @app.post("/v1/chat/completions", responses=ANSWERS["chat"], response_model=None)
    async def chat(request: ChatRequest, http: HttpRequest) -> Response:
        """Answer the question in one user message."""
        return await service.answer(request, CHAT, http)

    @app.post("/v1/completions", responses=ANSWERS["completions"], response_model=None)
    async def completions(request: CompletionRequest, http: HttpRequest) -> Response:
        """Answer one question or several."""
        return await service.answer(request, TEXT, http)

    @app.get("/v1/models", responses=ANSWERS["models"])
    async def models() -> dict[str, Any]:
        """List the one model that this service has."""
        return {"object": "list", "data": [service.model()]}

    @app.get("/v1/models/{model:path}", responses=ANSWERS["model"])
    async def model(model: str) -> dict[str, Any]:
        """Describe the model with the given name."""
        if model != service.name:
            raise Refused(404, f"there is no model '{model[:128]}'", "model")
        return service.model()

    @app.get("/health", responses=ANSWERS["health"])
    async def health() -> dict[str, Any]:
        """Report that the service takes questions; while it stops, it takes no connections."""
        return {"status": "ok", "waiting": service.batcher.waiting}

    @app.get("/metrics", responses=ANSWERS["metrics"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics in the text format of Prometheus."""
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)

    # Load balancers probe with HEAD; the server sends only the headers of the GET response.
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        if "GET" in route.methods:
            app.head(route.path, include_in_schema=False)(route.endpoint)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: HttpRequest, error: Refused) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HttpRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["loc"] == ("body",) and not _says_json(http):
            unread = Refused(415, "send JSON, with the header Content-Type: application/json")
            return JSONResponse(unread.body(), 415)
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

    @app.exception_handler(Exception)
    async def failed(_: HttpRequest, error: Exception) -> Response:
        refused = Refused(500, "the service failed on this request", kind="server_error")
        return JSONResponse(refused.body(), 500)  # starlette raises the error again, to log it


def _says_json(http: HttpRequest) -> bool:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))
