"""Requests of OpenAI's completion APIs, and refusals of them.

A reasoner answers one question at a time and has no roles, tools or output formats. A request for
a feature that it lacks is refused with the name of the field, instead of being partly fulfilled.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from fastapi.responses import Response
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from kava.serve.fields import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    IGNORED_FIELDS,
    NEUTRAL_VALUES,
    is_neutral,
)
from kava.serve.jobs import Sampling
from kava.serve.responses import ErrorBody, ErrorDetail, ErrorType


class RequestError(Exception):
    """A request that gets an error response.

    It holds the HTTP status, the message, the parameter at fault, and the error type of OpenAI.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        kind: ErrorType = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.kind = status, message, param, kind
        self.headers = headers or {}

    def body(self) -> ErrorBody:
        """Return the body of the error response."""
        return ErrorBody(
            error=ErrorDetail(message=self.message, type=self.kind, param=self.param, code=None)
        )

    def response(self) -> Response:
        """Return the error response."""
        return Response(
            self.body().model_dump_json(), self.status, self.headers, "application/json"
        )


#: Dividing logits by a lower temperature overflows; such an answer would be greedy in effect.
MIN_TEMPERATURE = 1e-3

Count = Annotated[int, Field(ge=1, le=1_000_000)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], Field(max_length=4)]
Prompts = Annotated[list[str], Field(min_length=1, max_length=256)]


def _as_list(value: Any) -> list[Any]:
    """Return a list; a single string becomes a list of one.

    Then validation errors are about one type, and not about each type of a union.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("text_or_list", "must be a text or a list")


def _prompts(value: Any) -> list[Any]:
    """Return a list of prompts.

    Token ids are refused: a question is encoded as it was in training, whatever the client does.
    """
    prompts = _as_list(value)
    if any(isinstance(one, list) or type(one) is int for one in prompts[:1]):
        raise PydanticCustomError(
            "token_ids", "must be text, not token ids; in lm-eval, set tokenized_requests=False"
        )
    return prompts


def _none_if_unlimited(value: Any) -> Any:
    """Return None for -1, which clients of llama.cpp send to request no limit."""
    return None if type(value) is int and value == -1 else value


Tokens = Annotated[
    Count | None,
    BeforeValidator(_none_if_unlimited, json_schema_input_type=Count | Literal[-1] | None),
]


def _content(value: Any) -> list[Any]:
    """Return the content of a message as a list of parts; a string becomes one text part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else _as_list(value)


def _allow_extra_fields(schema: dict[str, Any], request: type[Request]) -> None:
    """Add to the JSON schema the extra fields that `Request.check` allows."""
    schema["additionalProperties"] = False
    for name in sorted(IGNORED_FIELDS):
        schema["properties"][name] = {"description": "Accepted and ignored."}
    for name, values in request.neutral.items():
        schema["properties"][name] = {
            "enum": [*values, None],
            "description": "Other values are not supported.",
        }


class StreamOptions(BaseModel):
    """The field `stream_options` of a request."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


def _number_or_auto(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    if value == "auto":
        return value
    try:
        return check(value)
    except ValidationError:
        raise PydanticCustomError(
            "iterations", 'give a whole number from 0 to 1,000,000, or "auto"'
        ) from None


_Iterations = Annotated[int, Field(ge=0, le=1_000_000)]
#: T, or `auto`. Not validated as a union, whose errors would not name the field alone.
Iterations = Annotated[
    _Iterations | Literal["auto"],
    WrapValidator(_number_or_auto, json_schema_input_type=_Iterations | Literal["auto"]),
]


class Request(BaseModel):
    """Fields shared by both completion APIs.

    `num_iterations` is an extension of kava: T, for methods that iterate.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, protected_namespaces=(), json_schema_extra=_allow_extra_fields
    )

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL_VALUES

    model: Annotated[str, Field(max_length=256)]
    max_tokens: Tokens = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None,
        description="Sampling temperature. If it is 0 or not given, decoding is greedy, and "
        "`top_p` and `seed` have no effect.",
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None,
        description="Seed for sampling. With `n` above 1, each answer has a seed of its own, and "
        "the first answer is the same as with `n` = 1.",
    )
    stop: (
        Annotated[
            StopStrings, BeforeValidator(_as_list, json_schema_input_type=StopString | StopStrings)
        ]
        | None
    ) = Field(
        None,
        description="Up to 4 strings at which generation stops. The answer does not contain them. "
        "They are searched in the generated text, not in the prompt 'The answer is:' that a model "
        "with latents gets.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    num_iterations: Iterations | None = Field(
        None,
        description="Number of latent iterations T, or `auto`: until the latents of this question "
        "no longer change. The default is that of the model.",
    )

    @property
    def sampling(self) -> Sampling:
        """Sampling settings: greedy unless a temperature of at least `COLDEST` is given."""
        if self.temperature is None or self.temperature < MIN_TEMPERATURE:
            return Sampling()
        return Sampling(self.temperature, self.top_p or 1.0, self.seed)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, as a tuple; empty if none are given."""
        return tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def limit(self) -> int | None:
        """Return the requested number of new tokens, or None if none was given."""
        return self.max_tokens

    def check(self) -> None:
        """Refuse fields that the service does not support.

        Raises:
            RequestError: names the unsupported field.
        """
        for name, value in (self.model_extra or {}).items():
            known = name in self.neutral
            if name in IGNORED_FIELDS or (known and is_neutral(value, self.neutral[name])):
                continue
            why = "is not supported by this model" if known else "is not a field of this request"
            raise RequestError(400, f"'{name[:64]}' {why}", name[:64])


class TextPart(BaseModel):
    """A text part of a message."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(max_length=64)]


SYSTEM = ("system", "developer")


class Message(BaseModel):
    """A chat message.

    Only a message with the role `user` can be answered; an empty one of the system is ignored.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Annotated[str, Field(max_length=32, json_schema_extra={"enum": ["user", *SYSTEM]})]
    content: Annotated[Parts, BeforeValidator(_content, json_schema_input_type=str | Parts)]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.content)


class ChatRequest(Request):
    """Request body of `/v1/chat/completions`."""

    neutral = CHAT_NEUTRAL

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    max_completion_tokens: Tokens = None

    def limit(self) -> int | None:
        """Return `max_completion_tokens`, or its older name `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    def questions(self) -> list[str]:
        """Return the one question, as a list.

        Raises:
            RequestError: the request is not exactly one message with the role `user`, apart from
            empty system messages.
        """
        messages = [one for one in self.messages if one.role not in SYSTEM or one.text.strip()]
        if [message.role for message in messages] != ["user"]:
            roles = ", ".join(message.role for message in self.messages[:4])
            raise RequestError(
                400,
                "this model answers a single question: send exactly one message, with the role "
                f"'user' (got: {roles})",
                "messages",
            )
        return [messages[0].text]


class CompletionRequest(Request):
    """Request body of `/v1/completions`; each prompt in a list is a question of its own."""

    neutral = COMPLETION_NEUTRAL

    prompt: Annotated[Prompts, BeforeValidator(_prompts, json_schema_input_type=str | Prompts)]

    def questions(self) -> list[str]:
        """Return all questions of the request."""
        return self.prompt
