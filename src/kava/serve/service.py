"""The model behind the routes: check a request, queue its questions, and return the answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Literal

from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from kava.errors import KavaError
from kava.reasoning.context_window import LETTERS_PER_TOKEN
from kava.reasoning.reasoner import Reasoner
from kava.serve.answers import Answers, raise_if_failed
from kava.serve.batcher import Batcher, QueueFull
from kava.serve.jobs import Job, Piece
from kava.serve.limits import Limits
from kava.serve.metrics import Metrics
from kava.serve.protocol import Request, RequestError
from kava.serve.responses import Form, Model, usage

MAX_INLINE_CHARS = (
    20_000  # characters tokenized in the event loop; longer texts go to another thread
)
GRACE_SECONDS = 1.0  # seconds to wait beyond the deadline, as a forward pass cannot be interrupted


class Service:
    """State and request handling that the routes share.

    Args:
        name: what requests call the model.
    """

    def __init__(
        self, reasoner: Reasoner, name: str, limits: Limits, batcher: Batcher, metrics: Metrics
    ):
        self.reasoner, self.name, self.limits = reasoner, name, limits
        self.batcher, self.metrics = batcher, metrics
        self.no_tokens = len(reasoner.encoder.question(""))  # 1 if the tokenizer adds BOS, else 0
        self.created = int(time.time())

    def model(self) -> Model:
        """Return the served model as an entry of `/v1/models`."""
        return Model(id=self.name, created=self.created, method=self.reasoner.recipe.method)

    async def answer(self, request: Request, form: Form, http: HttpRequest) -> Response:
        """Check a request, queue its questions, and wait for the answers or stream them.

        Raises:
            RequestError: the request cannot be answered, for whatever reason.
        """
        request.check()
        if request.model != self.name:
            raise RequestError(
                404, f"there is no model '{request.model}'; this service has '{self.name}'", "model"
            )
        questions, each = request.questions(), request.n or 1
        most = self.limits.queue_length
        if len(questions) * each > most:
            raise RequestError(400, f"at most {most:,} answers per request", "n")
        num_iterations = self._num_iterations(request)
        new_tokens = self._new_tokens(request)
        if sum(map(len, questions)) > MAX_INLINE_CHARS:
            encoded = await asyncio.to_thread(self._encode, questions)
        else:
            encoded = self._encode(questions)
        deadline = time.monotonic() + self.limits.timeout
        answers = Answers(deadline + GRACE_SECONDS)
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
            raise RequestError(429, str(full), kind="rate_limit_error", headers=wait) from None
        except KavaError as error:
            raise RequestError(503, str(error), kind="server_error") from None
        if request.stream:
            events = self._stream_events(request, form, jobs, answers, len(questions))
            return StreamingResponse(events, media_type="text/event-stream")
        return await self._complete_response(form, jobs, answers, len(questions), http)

    def _emit(self, answers: Answers, index: int, piece: Piece) -> None:
        """Pass a piece on to the request that waits for it; called from any thread."""
        if piece.reason:
            self.metrics.count_answer(piece)
        answers.put(index, piece)

    async def _complete_response(
        self, form: Form, jobs: Sequence[Job], answers: Answers, questions: int, http: HttpRequest
    ) -> Response:
        try:
            last = await answers.wait_for_all(len(jobs), http)
        finally:
            for job in jobs:
                job.cancelled = True
        if last is None:
            return Response(status_code=499)  # the client has disconnected and will not read it
        for piece in last:
            raise_if_failed(piece)
        choices = [form.choice(i, piece) for i, piece in enumerate(last)]
        body = form.completion(
            **form.head(self.name, stream=False), choices=choices, usage=usage(last, questions)
        )
        return Response(body.model_dump_json(), media_type="application/json")

    async def _stream_events(
        self, request: Request, form: Form, jobs: Sequence[Job], answers: Answers, questions: int
    ) -> AsyncIterator[str]:
        head = form.head(self.name, stream=True)
        empty = {"usage": None} if request.wants_usage else {}
        last: dict[int, Piece] = {}
        begun: set[int] = set()
        try:
            while len(last) < len(jobs):
                try:
                    index, piece = await answers.get()
                    raise_if_failed(piece)
                except RequestError as refused:
                    yield _event(refused.body())
                    break
                choice = form.chunk_choice(index, piece, index not in begun)
                begun.add(index)
                yield _event(form.chunk(**head, choices=[choice], **empty))
                if piece.reason:
                    last[index] = piece
            else:
                if request.wants_usage:
                    counts = usage([last[i] for i in range(len(jobs))], questions)
                    yield _event(form.chunk(**head, choices=[], usage=counts))
            yield "data: [DONE]\n\n"
        finally:
            for job in jobs:
                job.cancelled = True

    def _encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each question.

        Raises:
            RequestError: a question is empty, contains broken characters, or is too long.
        """
        allowed = self.limits.question_tokens
        for question in questions:
            if not question.strip():
                raise RequestError(400, "the question is empty")
            if "\ufffd" in question or any("\ud800" <= letter <= "\udfff" for letter in question):
                raise RequestError(400, "the question contains invalid characters; send UTF-8")
            if len(question) > allowed * LETTERS_PER_TOKEN:
                raise _too_long(f"{len(question):,} characters", allowed)
        encoded = self.reasoner.encoder.questions(questions)
        for tokens in encoded:
            if len(tokens) == self.no_tokens:
                raise RequestError(
                    400, "the question is empty: the tokenizer produces no tokens for it"
                )
            if len(tokens) > allowed:
                raise _too_long(f"{len(tokens):,} tokens", allowed)
        return encoded

    def _num_iterations(self, request: Request) -> int | Literal["auto"] | None:
        """Return the requested number of iterations, or None if it is the recipe's.

        With `auto`, a question iterates at most as often as the limit allows
        (`kava.serve.app.limit_iterations`).
        """
        wanted, allowed = request.num_iterations, self.limits.num_iterations
        recipe = self.reasoner.recipe
        if wanted is not None and not self.reasoner.method.iterates:
            raise RequestError(
                400,
                f"the method '{recipe.method}' of this model does not iterate",
                "num_iterations",
            )
        least = 1 if wanted == "auto" else wanted
        if least is not None and allowed is not None and least > allowed:
            raise RequestError(400, f"at most {allowed} latent iterations", "num_iterations")
        return None if wanted == recipe.num_iterations else wanted

    def _new_tokens(self, request: Request) -> int:
        wanted, allowed = request.limit(), self.limits.new_tokens
        if wanted is not None and wanted > allowed:
            raise RequestError(400, f"at most {allowed:,} new tokens per answer", "max_tokens")
        return wanted or allowed


def _too_long(has: str, allowed: int) -> RequestError:
    return RequestError(400, f"the question has {has}; the limit is {allowed:,} tokens")


def _event(body: BaseModel) -> str:
    return f"data: {body.model_dump_json(exclude_unset=True)}\n\n"
