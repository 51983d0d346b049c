"""The progress of one model on one question, after each pass and each token."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from kava.demo.reports import stream_reports
from kava.inspect.decoded import Top, decode_states
from kava.reasoning.answers import Answer, ReasoningResult
from kava.reasoning.latents._watch import watch_passes
from kava.reasoning.reasoner import Reasoner


@dataclass(frozen=True)
class AnswerProgress:
    """The state of a model's answer while it is generated.

    passes: what the latents decode to after each pass so far, `passes[t][i]` as in
        `DecodedLatents`. If latents are generated one at a time, there is one list, which grows.
        Empty without latents.
    text: the answer so far, with everything that was written before it.
    forward_passes: number of forward passes so far, counted as in `Answer`.
    seconds: the time the model has worked so far, including the prefill of the question, but not
        the time to decode latents and to display them. See `stream_answer` for the time of
        the whole answer.
    answer: the finished answer; None before that.
    """

    passes: list[list[Top]]
    text: str
    forward_passes: int
    seconds: float
    answer: Answer | None = None


def stream_answer(
    reasoner: Reasoner,
    question: str,
    num_iterations: int | Literal["auto"] | None = None,
    max_new_tokens: int = 256,
    interval: float = 0.1,
    repeat_below: float = 2.0,
) -> Iterator[AnswerProgress]:
    """Answer a question; yield its progress after each pass of the latents and token.

    The last one holds the answer that `reasoner.answer(reasoner.think([question]))` returns.

    Args:
        num_iterations: T, or "auto" (`Reasoner.generate`); the recipe's value if not given.
        interval: minimum number of seconds between two reported tokens. For a small model,
            displaying each token would cost more than generating it, and slow it down.
        repeat_below: an answer that took fewer seconds than this is generated a second time,
            unobserved, to measure its time: observing and displaying in the same process costs as
            much as the reasoning itself.

    Raises:
        KavaError: see `Reasoner.think`.
    """

    def work(emit: Callable[[AnswerProgress], None]) -> None:
        report = _Report(reasoner, emit, interval)
        with watch_passes(report.on_pass):
            reasoning = reasoner.think([question], num_iterations)
        report.on_reasoning(reasoning)
        follow = StoppingCriteriaList([_FollowRow(report)])
        (answer,) = reasoner.answer(reasoning, max_new_tokens, stopping_criteria=follow)
        seconds = report.seconds
        if seconds < repeat_below:
            time.sleep(0.05)  # gives the server time to send the last progress to the page
            seconds = _time_unobserved(reasoner, question, num_iterations, max_new_tokens)
        report.on_answer(answer, seconds)

    return stream_reports(work)


class _Report:
    """Reports progress, with the clock stopped while it does so."""

    def __init__(self, reasoner: Reasoner, emit: Callable[[AnswerProgress], None], every: float):
        self.reasoner, self.emit, self.every = reasoner, emit, every
        self.passes: list[list[Top]] = []
        self.tokens: list[int] = []
        self.reasoning: ReasoningResult | None = None
        self.begin = self.reported = time.perf_counter()
        self.paused = 0.0

    def on_pass(self, states: Tensor) -> None:
        """Report that a pass of the latents has ended; states: [1, latents, hidden_size]."""
        with self._clock_stopped() as seconds:
            tops = decode_states(self.reasoner, states[0])
            if self.reasoner.method.iterates or not self.passes:
                self.passes.append(tops)
            else:
                self.passes[0] = [*self.passes[0], *tops]
            iterated = self.reasoner.method.iterates
            passes = len(self.passes) - 1 if iterated else len(self.passes[0])
            self.emit(AnswerProgress(list(self.passes), "", passes, seconds))

    def on_reasoning(self, reasoning: ReasoningResult) -> None:
        """Store the result of the reasoning: the latents are complete."""
        self.reasoning = reasoning

    def on_token(self, token: int) -> None:
        """Report that a token was generated."""
        self.tokens.append(token)
        if time.perf_counter() - self.reported < self.every:
            return
        assert self.reasoning is not None  # tokens are generated after the reasoning
        with self._clock_stopped() as seconds:
            passes = self.reasoning.forward_passes + len(self.tokens)
            text = self.reasoning.text(self.reasoner.tokenizer, 0, self.tokens)
            self.emit(AnswerProgress(list(self.passes), text, passes, seconds))

    def on_answer(self, answer: Answer, seconds: float) -> None:
        """Report that the answer is complete."""
        passes = list(self.passes)
        self.emit(AnswerProgress(passes, answer.text, answer.forward_passes, seconds, answer))

    @property
    def seconds(self) -> float:
        """Seconds that the model has worked so far, without the time the clock was stopped."""
        _synchronise(self.reasoner)
        return time.perf_counter() - self.begin - self.paused

    @contextmanager
    def _clock_stopped(self) -> Iterator[float]:
        """Stop the clock inside the `with` block; yields the seconds worked so far."""
        seconds, stopped = self.seconds, time.perf_counter()
        yield seconds
        self.reported = time.perf_counter()
        self.paused += self.reported - stopped


class _FollowRow(StoppingCriteria):
    """Stopping criterion that reads each new token of a single row and never stops generation."""

    def __init__(self, report: _Report):
        self.report = report

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return a mask [1] that is false: generation goes on."""
        self.report.on_token(int(input_ids[0, -1]))
        return torch.zeros(1, dtype=torch.bool, device=input_ids.device)


def _time_unobserved(
    reasoner: Reasoner,
    question: str,
    num_iterations: int | Literal["auto"] | None,
    max_new_tokens: int,
) -> float:
    """Return the seconds that an answer takes when it is not observed."""
    begin = time.perf_counter()
    reasoner.answer(reasoner.think([question], num_iterations), max_new_tokens)
    _synchronise(reasoner)
    return time.perf_counter() - begin


def _synchronise(reasoner: Reasoner) -> None:
    if reasoner.device.type == "cuda":
        torch.cuda.synchronize(reasoner.device)
