"""What `/openapi.json` says beyond what FastAPI writes from the models."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from kava.serve.limits import Limits
from kava.serve.responses import ChatCompletionChunk, ErrorBody

_REASONS = {
    400: "The request is not valid",
    401: "The API key is missing or wrong",
    404: "The model does not exist",
    408: "The request did not arrive in time",
    413: "The request is too large",
    415: "The body is not declared as JSON",
    429: "The queue is full",
    500: "The model failed on this question",
    503: "The service is stopping or overloaded",
    504: "The answer took too long",
}
_REF = "#/components/schemas/{model}"
_RETRY_AFTER = {"schema": {"type": "integer", "minimum": 1}, "required": True}
#: Every route may answer with these.
COMMON_STATUSES = (400, 408, 413, 503)
#: The routes that generate may also answer with these.
GENERATING = (404, 415, 429, 500, 504)

Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """Return the error responses with these statuses, for the `responses` of a route."""
    responses: Responses = {
        status: {"model": ErrorBody, "description": _REASONS[status]} for status in statuses
    }
    if 429 in responses:
        retry = {**_RETRY_AFTER, "description": "seconds to wait before the next request"}
        responses[429]["headers"] = {"Retry-After": retry}
    return responses


def streamed_response(chunk: type[BaseModel]) -> Responses:
    """Return the streamed response of a route: chunks or an error, then `[DONE]`."""
    parts = [{"$ref": _REF.format(model=part.__name__)} for part in (chunk, ErrorBody)]
    json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": parts}}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, json]}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {200: {"content": {"text/event-stream": {"itemSchema": event}}}}


def describe(app: FastAPI, name: str, limits: Limits, iterates: bool) -> None:
    """Make `/openapi.json` describe this service, with its model and its limits."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)  # FastAPI's default; ours is 400
            schemas = schema["components"]["schemas"]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            chunk = ChatCompletionChunk.model_json_schema(ref_template=_REF)  # no route returns it
            schemas |= {**chunk.pop("$defs"), "ChatCompletionChunk": chunk}
            for request in ("ChatRequest", "CompletionRequest"):
                _limit(schemas[request]["properties"], name, limits, iterates)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _limit(fields: dict[str, Any], name: str, limits: Limits, iterates: bool) -> None:
    """Set the limits of this service in the schema of a request."""
    fields["model"]["enum"] = [name]
    for tokens in ("max_tokens", "max_completion_tokens"):
        if tokens in fields:
            fields[tokens]["anyOf"][0]["maximum"] = limits.new_tokens
    if iterates:
        fields["num_iterations"]["anyOf"][0]["maximum"] = limits.num_iterations
    else:
        fields["num_iterations"] = {"type": "null"}
