"""Response and error schemas for `/openapi.json`.

These classes are never instantiated by the service; the tests validate real responses against them.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from kava.serve.limits import Limits


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(_Exact):
    """Details of an error: `type` and `param` are for programs, `message` is for people."""

    message: str
    type: Literal[
        "invalid_request_error", "invalid_api_key", "rate_limit_error", "server_error", "timeout"
    ]
    param: str | None
    code: None


class ErrorBody(_Exact):
    """Body of an error response, in the format of the OpenAI API."""

    error: ErrorDetail


class Usage(_Exact):
    """Token counts; `forward_passes` and `latents` are the cost of reasoning, over all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    forward_passes: int
    latents: int


class AssistantMessage(_Exact):
    """The answer to a user message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Exact):
    """One answer in a chat response."""

    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(_Exact):
    """Response body of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(_Exact):
    """One answer in a completion response."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class TextAnswer(_Exact):
    """Response body of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Delta(_Exact):
    """Text added to an answer; the first delta also has the role."""

    role: Literal["assistant"] | None = None
    content: str


class ChatChunkChoice(_Exact):
    """A part of one answer; the last part has the finish reason."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(_Exact):
    """An event of a stream.

    If usage was requested, the last event before `[DONE]` has the usage and no choices.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChunkChoice(_Exact):
    """A part of one answer; the last part has the finish reason."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"] | None


class TextChunk(_Exact):
    """An event of a stream.

    If usage was requested, the last event before `[DONE]` has the usage and no choices.
    """

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class Model(_Exact):
    """The served model; `method` is its reasoning method."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["kava"]
    method: str


class ModelList(_Exact):
    """Response body of `/v1/models`."""

    object: Literal["list"]
    data: list[Model]


class Health(_Exact):
    """Response body of `/health`; `waiting` is the number of questions in the queue."""

    status: Literal["ok"]
    waiting: int


_ERRORS = {
    400: "what is wrong with the request",
    401: "no or another API key",
    404: "no such model",
    408: "the request did not arrive in time",
    413: "the request is too large",
    415: "the body is not said to be JSON",
    429: "too many questions are waiting",
    500: "the model failed on this question",
    503: "the service is stopping, or too much is open or being read at once",
    504: "the answer took too long",
}
_REF = "#/components/schemas/{model}"
_ANY = (400, 401, 408, 413, 503)


def _stream(chunk: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a streamed response: these chunks or an error, then `[DONE]`."""
    parts = [{"$ref": _REF.format(model=part.__name__)} for part in (chunk, ErrorBody)]
    json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": parts}}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, json]}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": event}}


def _answers(body: type[BaseModel] | None, *more: int, **answer: Any) -> dict[int | str, Any]:
    told: dict[int | str, Any] = {200: {"description": "the answer", **answer}}
    if body is not None:
        told[200]["model"] = body
    for status in sorted({*_ANY, *more}):
        # Not given as a "model": that would have the media type of the route's own response.
        error = {"application/json": {"schema": {"$ref": _REF.format(model="ErrorBody")}}}
        told[status] = {"description": _ERRORS[status], "content": error}
    for status in {429} & set(more):
        seconds = {"schema": {"type": "integer", "minimum": 1}, "required": True}
        told[status]["headers"] = {"Retry-After": {**seconds, "description": "seconds"}}
    return told


_ASKED = (404, 415, 429, 500, 504)
#: Responses of each route, by the name of its function.
ANSWERS = {
    "chat": _answers(ChatAnswer, *_ASKED, content=_stream(ChatChunk)),
    "completions": _answers(TextAnswer, *_ASKED, content=_stream(TextChunk)),
    "models": _answers(ModelList),
    "model": _answers(Model, 404),
    "health": _answers(Health),
    "metrics": _answers(None),
}


def describe(app: FastAPI, name: str, limits: Limits, iterates: bool, key: bool) -> None:
    """Make `/openapi.json` describe this service, with its model, its limits and its API key."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _drop_unused(made)
            schemas = made["components"]["schemas"]
            for part in (ErrorBody, ChatChunk, TextChunk):  # no route declares these
                written = part.model_json_schema(ref_template=_REF)
                schemas.update({**written.pop("$defs"), part.__name__: written})
            for request in ("ChatRequest", "CompletionRequest"):
                _narrow(schemas[request]["properties"], name, limits, iterates)
            if key:
                _ask_for_key(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_unused(made: dict[str, Any]) -> None:
    """Remove FastAPI's default 422 responses; the service sends 400 instead."""
    for operations in made["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        made["components"]["schemas"].pop(unused, None)


def _narrow(fields: dict[str, Any], name: str, limits: Limits, iterates: bool) -> None:
    fields["model"]["enum"] = [name]
    for tokens in ("max_tokens", "max_completion_tokens"):
        if tokens in fields:
            fields[tokens]["anyOf"][0]["maximum"] = limits.new_tokens
    if iterates:
        fields["num_iterations"]["anyOf"][0]["maximum"] = limits.num_iterations
    else:
        fields["num_iterations"] = {"type": "null"}


def _ask_for_key(made: dict[str, Any]) -> None:
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            if path == "/health":
                operation["responses"].pop("401")
            else:
                operation["security"] = [{"key": []}]
