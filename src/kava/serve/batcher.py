"""Answer waiting questions together, in batches.

One thread owns the model. It takes a batch from the queue, waits a moment for others that may share
it, and answers them together. No answer depends on what else is in its batch: padding and batching
change nothing. Tokens are passed on as soon as they are generated.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from kava.errors import KavaError
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.latents._watch import watch_passes
from kava.reasoning.reasoner import Reasoner
from kava.serve.jobs import ERROR, LENGTH, STOP, Job, Piece
from kava.serve.queue import Queue
from kava.serve.sampling import BatchSampler

_log = logging.getLogger(__name__)


class QueueFull(KavaError):
    """The queue has no space for more questions; `retry_after` is an estimate in whole seconds."""

    def __init__(self, retry_after: int):
        super().__init__(
            f"too many questions are waiting; try again in {retry_after} s", code="serve.queue-full"
        )
        self.retry_after = retry_after


class _Abandoned(Exception):
    """Raised while the model thinks, when nobody waits for any answer of the batch any more."""


class Batcher:
    """A thread that answers jobs in batches.

    Args:
        reasoner: the model, which nothing else may use while the batcher runs.
        batch_size: maximum number of questions answered together.
        delay: seconds to wait for more questions before an incomplete batch starts.
        queue_length: maximum number of waiting questions; see `Queue.add`.
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
        self.observe = observe
        self._queue = Queue(queue_length)
        self._changed = threading.Condition()
        self._closing = False
        self._pace = 0.05  # seconds per batch, a running average
        self._thread = threading.Thread(target=self._work, name="kava-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of questions in the queue."""
        with self._changed:
            return len(self._queue)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add the jobs of one request to the queue: either all of them or none.

        Args:
            jobs: all with the same number of iterations.

        Raises:
            QueueFull: the queue has no space for all of them.
            KavaError: the batcher is closed.
        """
        with self._changed:
            if self._closing:
                raise KavaError("the service is stopping", code="serve.stopping")
            if not self._queue.add(jobs):
                batches = math.ceil(len(self._queue) / self.batch_size)
                raise QueueFull(max(1, math.ceil(batches * self._pace)))
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
            except _Abandoned:
                for job in batch:
                    job.end_if_unwanted()
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
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return []
                self._changed.wait_for(
                    lambda: self._closing or self._queue.first_count() >= self.batch_size,
                    timeout=self.delay,
                )
                if batch := self._queue.take(self.batch_size):
                    return batch


class _Watched:
    """A job in a batch, with the part of its text that was already emitted."""

    def __init__(self, job: Job):
        self.job, self.sent = job, ""

    def update(self, text: str, reason: str | None, cost: dict[str, int]) -> None:
        """Emit the new text; an incomplete character is held back until it is complete."""
        if reason is None:
            if self.job.stream and not text.endswith("\ufffd"):
                certain = text[: len(text) - _overlap(text, self.job.stop)]
                if len(certain) > len(self.sent):
                    self.job.emit(Piece(certain[len(self.sent) :]))
                    self.sent = certain
            return
        self.job.end(Piece(text[len(self.sent) :], reason, **cost))


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


def _answer(reasoner: Reasoner, batch: list[_Watched]) -> None:
    jobs = [one.job for one in batch]

    def check_jobs(_: Tensor) -> None:
        if all(job.unwanted_reason() for job in jobs):
            raise _Abandoned

    with watch_passes(check_jobs):
        reasoning = reasoner.think_about([job.question for job in jobs], jobs[0].num_iterations)
    latents = 0 if reasoning.latent_states is None else reasoning.latent_states.shape[1]
    costs = [{"latents": latents, "question_tokens": len(job.question)} for job in jobs]
    follow = _Follow(reasoner.tokenizer, batch, reasoning, costs)
    sampled = any(job.sampling.temperature for job in jobs)
    draw = [BatchSampler([job.sampling for job in jobs], reasoner.device)] if sampled else []
    reasoner.continue_from(
        reasoning,
        max(job.max_new_tokens for job in jobs),
        stopping_criteria=StoppingCriteriaList([follow]),
        logits_processor=LogitsProcessorList(draw),
    )


class _Follow(StoppingCriteria):
    """Stopping criterion that reads each new token and ends rows that are finished or abandoned."""

    def __init__(
        self,
        tokenizer: Any,
        batch: list[_Watched],
        reasoning: ReasoningResult,
        costs: list[dict[str, int]],
    ):
        self.tokenizer, self.batch, self.reasoning = tokenizer, batch, reasoning
        self.costs = costs
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
        reason = job.unwanted_reason()
        if reason is None and token == self.tokenizer.eos_token_id:
            reason = STOP
        if reason is None and len(tokens) >= job.max_new_tokens:
            reason = LENGTH
        if not (job.stream or job.stop or reason):
            return
        text = self.reasoning.text(self.tokenizer, row, tokens)
        prompt = len(self.reasoning.prompt_text or "")
        positions = [at for stop in job.stop if (at := text.find(stop, prompt)) >= 0]
        if positions:
            text, reason = text[: min(positions)], reason or STOP
        self.ended[row] = reason is not None
        cost = {
            **self.costs[row],
            "generated_tokens": len(tokens),
            "forward_passes": self.reasoning.passes(row) + len(tokens),
        }
        watched.update(text, reason, cost)
