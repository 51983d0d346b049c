"""Questions that wait are answered together.

One thread owns the model. It takes the oldest waiting question, waits a moment for others that are
asked in the same way, and answers them as one batch; no answer depends on what else is in it
(padding and batching change nothing). Tokens are handed out as they come.
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
    """No place for more questions; `retry_after` is a guess in whole seconds."""

    def __init__(self, retry_after: int):
        super().__init__(
            f"too many questions are waiting; try again in {retry_after} s", code="serve.queue-full"
        )
        self.retry_after = retry_after


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen; temperature 0 is greedy. Answers share a batch only with
    equal sampling, and one with a seed is answered alone, so that the seed alone decides."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def choice(self, k: int) -> Sampling:
        """Of the k-th of several answers to one question: with a seed, each has its own.

        That of the first is the seed itself, so that asking for more answers does not change it.
        """
        if self.seed is None or k == 0:
            return self
        mixed = sha256(f"{self.seed}/{k}".encode()).digest()
        return replace(self, seed=int.from_bytes(mixed[:8], signed=True))


@dataclass(frozen=True)
class Piece:
    """Text that was added to an answer; the last piece says why it ends and what it cost.

    reason: None while the answer goes on; `stop`, `length`, `cancelled`, `timeout` or `error`.
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

    question: its token ids (`Encoder.question`).
    emit: told each piece, from the model's thread. Only the last one if `stream` is false, which
        then has the whole text.
    stop: texts that end the answer where the first of them begins in what is generated; the prompt
        that the model is fed ("The answer is:") is not searched.
    deadline: of `time.monotonic`.
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
        """Jobs of one kind may share a batch."""
        alone = id(self) if self.sampling.seed is not None and self.sampling.temperature else None
        return self.sampling, self.num_iterations, alone

    def over(self) -> str | None:
        """Why nobody waits for this answer any more, if so."""
        if time.monotonic() > self.deadline:
            return TIMEOUT
        return CANCELLED if self.cancelled else None

    def end(self, piece: Piece) -> None:
        """Emit the last piece, once."""
        if not self.done:
            self.done = True
            self.emit(piece)


class Batcher:
    """A thread that answers jobs.

    Args:
        reasoner: nobody else may use it meanwhile.
        batch_size: questions answered together at most.
        delay: seconds to wait for further questions before an incomplete batch starts.
        queue_length: questions that may wait.
        observe: told of each batch, its size and its seconds.
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
        self._pace = 0.05  # seconds per batch, a running mean
        self._thread = threading.Thread(target=self._work, name="kava-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all or none.

        Raises:
            QueueFull: there is no room for them.
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
        """Answer what was accepted, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # -- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next():
            begin = time.perf_counter()
            try:
                _answer(self.reasoner, [_Watched(job) for job in batch])
            except Exception:  # the thread has to outlive a batch that fails
                _log.exception("a batch of %d failed", len(batch))
                for job in batch:
                    job.end(Piece("", ERROR))
            seconds = time.perf_counter() - begin
            self._pace = 0.8 * self._pace + 0.2 * seconds
            self.observe(len(batch), seconds)

    def _next(self) -> list[Job]:
        """The next batch; empty when there is nothing left to do for good."""
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
        """Of the waiting jobs, the oldest one's kind; those nobody waits for are ended."""
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
    """A job in its batch: which of its text was handed out, and what it has cost."""

    def __init__(self, job: Job):
        self.job, self.sent = job, ""

    def tell(self, text: str, reason: str | None, cost: dict[str, int]) -> None:
        """Hand out what is new; an unfinished character waits for its rest."""
        if reason is None:
            if self.job.stream and not text.endswith("\ufffd"):
                held = text[: len(text) - _overlap(text, self.job.stop)]
                if len(held) > len(self.sent):
                    self.job.emit(Piece(held[len(self.sent) :]))
                    self.sent = held
            return
        self.job.end(Piece(text[len(self.sent) :], reason, **cost))


def _overlap(text: str, stops: Sequence[str]) -> int:
    """How much of the end of `text` may be the beginning of a stop string."""
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
    """Leaves one token in each row, drawn with a generator of its own.

    torch's own generator belongs to the whole process: a seed there would be everybody's. There
    is no top_k: transformers' default of 50 is not what a client of this interface asks for.
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
        """[B, vocabulary], all but one of each row minus infinity."""
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        drawn = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
        return torch.full_like(scores, -math.inf).scatter(1, drawn, 0.0)


class _Follow(StoppingCriteria):
    """Reads each new token, and ends the rows that are finished or that nobody waits for."""

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
        """[B], true where a row is to end here."""
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
