"""The routes of the HTTP service: OpenAI's `/v1/...`, `/health` and `/metrics`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import APIRouter, Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from kava.reasoning.context_window import max_question_tokens
from kava.reasoning.reasoner import Reasoner
from kava.serve.batcher import Batcher
from kava.serve.gate import Gate
from kava.serve.hosts import Hosts
from kava.serve.limits import Limits
from kava.serve.metrics import Metrics
from kava.serve.openapi import COMMON_STATUSES, GENERATING, describe, errors, streamed_response
from kava.serve.protocol import ChatRequest, CompletionRequest, RequestError
from kava.serve.responses import (
    CHAT,
    TEXT,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Health,
    Model,
    ModelList,
)
from kava.serve.service import Service
from kava.system.version import __version__


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
    reasoner = limit_iterations(reasoner, limits.num_iterations)
    metrics = Metrics()
    batcher = Batcher(
        reasoner, limits.batch_size, limits.delay, limits.queue_length, metrics.count_batch
    )
    metrics.watch(batcher)
    service = Service(reasoner, name, limits, batcher, metrics)

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
        responses=errors(*COMMON_STATUSES),
        redirect_slashes=False,  # a redirect would repeat whatever Host header the client sent
    )
    app.state.batcher = batcher
    _handle_errors(app)
    _add_routes(app, service, api_key is not None)
    app.add_middleware(
        Gate, limits=limits, api_key=api_key, metrics=metrics, hosts=hosts or Hosts()
    )
    describe(app, name, limits, reasoner.method.iterates)
    return app


def limit_iterations(reasoner: Reasoner, most: int | None) -> Reasoner:
    """Return a reasoner with the same weights that stops `auto` after at most `most` iterations."""
    if most is None or most >= reasoner.recipe.max_iterations:
        return reasoner
    return reasoner.with_settings(max_iterations=max(most, 1))


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


# -- routes and errors ---------------------------------------------------------------------------


def _add_routes(app: FastAPI, service: Service, needs_key: bool) -> None:
    # `Gate` checks the key; the dependency only describes it.
    key = Depends(HTTPBearer(auto_error=False, scheme_name="key", description="the API key"))
    api = APIRouter(
        dependencies=[key] if needs_key else [], responses=errors(401) if needs_key else {}
    )

    @api.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=errors(*GENERATING) | streamed_response(ChatCompletionChunk),
    )
    async def create_chat_completion(request: ChatRequest, http: HttpRequest) -> Response:
        """Generate an answer to a chat message with the role `user`."""
        return await service.answer(request, CHAT, http)

    @api.post(
        "/v1/completions",
        response_model=Completion,
        responses=errors(*GENERATING) | streamed_response(Completion),
    )
    async def create_completion(request: CompletionRequest, http: HttpRequest) -> Response:
        """Generate answers to one prompt or several."""
        return await service.answer(request, TEXT, http)

    @api.get("/v1/models")
    async def list_models() -> ModelList:
        """List the available models: this service has one."""
        return ModelList(data=[service.model()])

    @api.get("/v1/models/{model:path}", responses=errors(404))
    async def retrieve_model(model: str) -> Model:
        """Return the model with this name."""
        if model != service.name:
            raise RequestError(404, f"there is no model '{model[:128]}'", "model")
        return service.model()

    @app.get("/health")
    async def health() -> Health:
        """Return that the service is ready, and the number of waiting questions."""
        return Health(waiting=service.batcher.waiting)

    plain = {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @api.get("/metrics", response_class=Response, responses={200: plain})
    async def metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)

    # Load balancers probe with HEAD; the server sends only the headers of the GET response.
    for router in (api, app.router):
        for route in list(router.routes):
            if isinstance(route, APIRoute) and "GET" in route.methods:
                router.head(route.path, include_in_schema=False)(route.endpoint)
    app.include_router(api)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def handle_request_error(_: HttpRequest, error: RequestError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(http: HttpRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["loc"] == ("body",) and not _says_json(http):
            return RequestError(
                415, "send JSON, with the header Content-Type: application/json"
            ).response()
        if first["type"] == "json_invalid":
            why = first.get("ctx", {}).get("error", "")
            return RequestError(400, f"the body is not valid JSON: {why}"[:512]).response()
        where = ".".join(str(part) for part in first["loc"] if part != "body")[:128]
        message = f"{where}: {first['msg']}" if where else first["msg"]
        return RequestError(400, message[:512], where or None).response()

    @app.exception_handler(HTTPException)
    async def handle_http_error(_: HttpRequest, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return RequestError(error.status_code, str(error.detail), headers=headers).response()

    @app.exception_handler(Exception)
    async def handle_failure(_: HttpRequest, error: Exception) -> Response:
        # Starlette raises the error again, to log it.
        message = "the service failed on this request"
        return RequestError(500, message, kind="server_error").response()


def _says_json(http: HttpRequest) -> bool:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))
