"""Answer waiting questions together, in batches.

One thread owns the model. It takes the oldest waiting question, waits a moment for others with the
same settings, and answers them as one batch. No answer depends on what else is in its batch:
padding and batching change nothing. Tokens are passed on as soon as they are generated.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from kava.errors import KavaError
from kava.reasoning.reasoner import Reasoner

_log = logging.getLogger(__name__)

STOP, LENGTH, CANCELLED, TIMEOUT, ERROR = "stop", "length", "cancelled", "timeout", "error"


class QueueFull(KavaError):
    """The queue has no space for more questions; `retry_after` is an estimate in whole seconds."""

    def __init__(self, retry_after: int):
        super().__init__(
            f"too many questions are waiting; try again in {retry_after} s", code="serve.queue-full"
        )
        self.retry_after = retry_after


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen; temperature 0 is greedy decoding.

    Only answers with equal sampling share a batch. An answer with a seed is generated in a batch of
    its own, so that it depends on the seed alone.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def choice(self, k: int) -> Sampling:
        """Return the sampling for the k-th of several answers to one question, with its own seed.

        The first answer uses the seed itself, so that asking for more answers does not change it.
        Without a seed, all answers use this sampling.
        """
        if self.seed is None or k == 0:
            return self
        mixed = sha256(f"{self.seed}/{k}".encode()).digest()
        return replace(self, seed=int.from_bytes(mixed[:8], signed=True))


@dataclass(frozen=True)
class Piece:
    """Text added to an answer; the last piece also says why the answer ended and what it cost.

    reason: None while the answer goes on; then `stop`, `length`, `cancelled`, `timeout` or `error`.
    """

    text: str
    reason: str | None = None
    question_tokens: int = 0
    generated_tokens: int = 0
    forward_passes: int = 0
    latents: int = 0


@dataclass
class Job:
    """A question to answer.

    question: the token ids of the question (`Encoder.question`).
    emit: called with each piece, from the model's thread. If `stream` is false, it is called only
        with the last piece, which then contains the whole text.
    stop: strings that end the answer where the first of them begins in the generated text. The
        prompt that the model is given ("The answer is:") is not searched.
    deadline: time, as given by `time.monotonic`, after which the answer is no longer needed.
    """

    question: list[int]
    emit: Callable[[Piece], None]
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    num_iterations: int | None = None
    stream: bool = False
    deadline: float = math.inf
    cancelled: bool = False
    done: bool = False

    @property
    def kind(self) -> Hashable:
        """Key of the jobs that may share a batch with this one."""
        alone = id(self) if self.sampling.seed is not None and self.sampling.temperature else None
        return self.sampling, self.num_iterations, alone

    def over(self) -> str | None:
        """Return why nobody waits for this answer any more, or None if somebody does."""
        if time.monotonic() > self.deadline:
            return TIMEOUT
        return CANCELLED if self.cancelled else None

    def end(self, piece: Piece) -> None:
        """Emit the last piece; does nothing after the first call."""
        if not self.done:
            self.done = True
            self.emit(piece)


class Batcher:
    """A thread that answers jobs in batches.

    Args:
        reasoner: the model, which nothing else may use while the batcher runs.
        batch_size: maximum number of questions answered together.
        delay: seconds to wait for more questions before an incomplete batch starts.
        queue_length: maximum number of waiting questions.
        observe: called after each batch with its size and its duration in seconds.
    """

    def __init__(
        self,
        reasoner: Reasoner,
        batch_size: int = 32,
        delay: float = 0.002,
        queue_length: int = 256,
        observe: Callable[[int, float], None] = lambda *_: None,
    ):
        self.reasoner, self.batch_size, self.delay = reasoner.eval(), batch_size, delay
        self.queue_length, self.observe = queue_length, observe
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._pace = 0.05  # seconds per batch, a running average
        self._thread = threading.Thread(target=self._work, name="kava-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of questions in the queue."""
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs to the queue: either all of them or none.

        Raises:
            QueueFull: the queue has no space for all of them.
            KavaError: the batcher is closed.
        """
        with self._changed:
            if self._closing:
                raise KavaError("the service is stopping", code="serve.stopping")
            if len(self._waiting) + len(jobs) > self.queue_length:
                batches = math.ceil(len(self._waiting) / self.batch_size)
                raise QueueFull(max(1, math.ceil(batches * self._pace)))
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        """Answer the questions that were accepted, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # -- runs in the thread ----------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next():
            begin = time.perf_counter()
            try:
                _answer(self.reasoner, [_Watched(job) for job in batch])
            except Exception:  # the thread must survive a batch that fails
                _log.exception("a batch of %d failed", len(batch))
                for job in batch:
                    job.end(Piece("", ERROR))
            seconds = time.perf_counter() - begin
            self._pace = 0.8 * self._pace + 0.2 * seconds
            self.observe(len(batch), seconds)

    def _next(self) -> list[Job]:
        """Wait for the next batch and return it; an empty list means that the batcher is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                kind = self._waiting[0].kind
                self._changed.wait_for(
                    lambda kind=kind: self._closing or self._ready(kind), timeout=self.delay
                )
                if batch := self._take():
                    return batch

    def _ready(self, kind: Hashable) -> bool:
        return sum(job.kind == kind for job in self._waiting) >= self.batch_size

    def _take(self) -> list[Job]:
        """Take the next batch from the queue: jobs of the same kind as the oldest waiting one.

        Jobs that nobody waits for any more are ended.
        """
        batch: list[Job] = []
        left: deque[Job] = deque()
        for job in self._waiting:
            if reason := job.over():
                job.end(Piece("", reason))
            elif len(batch) < self.batch_size and (not batch or job.kind == batch[0].kind):
                batch.append(job)
            else:
                left.append(job)
        self._waiting = left
        return batch


class _Watched:
    """A job in a batch, with the part of its text that was already emitted."""

    def __init__(self, job: Job):
        self.job, self.sent = job, ""

    def tell(self, text: str, reason: str | None, cost: dict[str, int]) -> None:
        """Emit the new text; an incomplete character is held back until it is complete."""
        if reason is None:
            if self.job.stream and not text.endswith("\ufffd"):
                held = text[: len(text) - _overlap(text, self.job.stop)]
                if len(held) > len(self.sent):
                    self.job.emit(Piece(held[len(self.sent) :]))
                    self.sent = held
            return
        self.job.end(Piece(text[len(self.sent) :], reason, **cost))


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


def _answer(reasoner: Reasoner, batch: list[_Watched]) -> None:
    jobs = [one.job for one in batch]
    first = jobs[0]
    thinking = reasoner.think_about([job.question for job in jobs], first.num_iterations)
    latents = 0 if thinking.latent_states is None else thinking.latent_states.shape[1]
    costs = [{"latents": latents, "question_tokens": len(job.question)} for job in jobs]
    follow = _Follow(reasoner, batch, thinking.prompt_text, thinking.forward_passes, costs)
    draw = [_Draw(first.sampling, reasoner.device)] if first.sampling.temperature else []
    reasoner.continue_from(
        thinking,
        max(job.max_new_tokens for job in jobs),
        stopping_criteria=StoppingCriteriaList([follow]),
        logits_processor=LogitsProcessorList(draw),
    )


class _Draw(LogitsProcessor):
    """Logits processor that samples one token for each row, with a generator of its own.

    torch's default generator is shared by the whole process, so seeding it would affect all other
    users. There is no top_k: clients of the OpenAI interface do not ask for transformers' default
    of 50.
    """

    def __init__(self, sampling: Sampling, device: torch.device):
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits [batch, vocabulary]: 0 for the sampled token, minus infinity elsewhere."""
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        drawn = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
        return torch.full_like(scores, -math.inf).scatter(1, drawn, 0.0)


class _Follow(StoppingCriteria):
    """Stopping criterion that reads each new token and ends rows that are finished or abandoned."""

    def __init__(
        self,
        reasoner: Reasoner,
        batch: list[_Watched],
        prompt: str,
        passes: int,
        costs: list[dict[str, int]],
    ):
        self.tokenizer, self.batch, self.prompt = reasoner.tokenizer, batch, prompt
        self.passes, self.costs = passes, costs
        self.tokens: list[list[int]] = [[] for _ in batch]
        self.ended = [False] * len(batch)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return a mask [batch], true for rows that end here."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.ended[row]:
                self._read(row, token)
        return torch.tensor(self.ended, device=input_ids.device)

    def _read(self, row: int, token: int) -> None:
        watched, tokens = self.batch[row], self.tokens[row]
        job = watched.job
        tokens.append(token)
        reason = job.over()
        if reason is None and token == self.tokenizer.eos_token_id:
            reason = STOP
        if reason is None and len(tokens) >= job.max_new_tokens:
            reason = LENGTH
        if not (job.stream or job.stop or reason):
            return
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if job.stop:
            found = [at for stop in job.stop if (at := text.find(stop)) >= 0]
            if found:
                text, reason = text[: min(found)], reason or STOP
        text = self.prompt + text
        self.ended[row] = reason is not None
        cost = {
            **self.costs[row],
            "generated_tokens": len(tokens),
            "forward_passes": self.passes + len(tokens),
        }
        watched.tell(text, reason, cost)
