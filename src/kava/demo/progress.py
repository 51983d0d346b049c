"""One model at one question: how far it has come after each pass and each token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from kava.demo.happening import as_it_happens
from kava.inspect.decoded import Top, decode_states
from kava.reasoning.answers import Answer, ReasoningResult
from kava.reasoning.latents._watch import watch_passes
from kava.reasoning.reasoner import Reasoner


@dataclass(frozen=True)
class Progress:
    """How far a model has come.

    passes: what the latents decode to after each pass so far, passes[t][i] as in `DecodedLatents`.
        If latents are made one at a time, there is one list, which grows. Empty without latents.
    text: of the answer so far, with all that was written before it.
    forward_passes: so far, counted as in `Answer`.
    seconds: the model has worked so far, the reading of its question included; what it takes to
        decode latents and to show them is not. See `answering` for those of the whole answer.
    answer: the finished one; None before.
    """

    passes: list[list[Top]]
    text: str
    forward_passes: int
    seconds: float
    answer: Answer | None = None


def answering(
    reasoner: Reasoner,
    question: str,
    num_iterations: int | None = None,
    max_new_tokens: int = 256,
    every: float = 0.1,
    again: float = 2.0,
) -> Iterator[Progress]:
    """Think and answer: a `Progress` after each pass of the latents, and as tokens are written.

    The last one holds the answer that `reasoner.answer(reasoner.think([question]))` gives.

    Args:
        num_iterations: T, the recipe's if not given.
        every: seconds between two tokens that are told, at least. Showing each token of a small
            model would cost more than writing it, and slow it down.
        again: an answer that took fewer seconds is given once more, unwatched, for its time: being
            watched and shown in the same process costs as much as thinking does.

    Raises:
        KavaError: as `Reasoner.think`.
    """

    def work(tell: Callable[[Progress], None]) -> None:
        report = _Report(reasoner, tell, every)
        with watch_passes(report.passed):
            thinking = reasoner.think([question], num_iterations)
        report.thought(thinking)
        follow = StoppingCriteriaList([_Follow(report)])
        (answer,) = reasoner.answer(thinking, max_new_tokens, stopping_criteria=follow)
        seconds = report.seconds
        if seconds < again:
            time.sleep(0.05)  # for the page to be sent what it was told
            seconds = _alone(reasoner, question, num_iterations, max_new_tokens)
        report.ended(answer, seconds)

    return as_it_happens(work)


class _Report:
    """Says how far it has come, and stops the clock while it does."""

    def __init__(self, reasoner: Reasoner, tell: Callable[[Progress], None], every: float):
        self.reasoner, self.tell, self.every = reasoner, tell, every
        self.passes: list[list[Top]] = []
        self.tokens: list[int] = []
        self.thinking: ReasoningResult | None = None
        self.begin = self.told = time.perf_counter()
        self.paused = 0.0

    def passed(self, states: Tensor) -> None:
        """A pass of the latents has ended; states [1, n, d]."""
        with self._clock_stopped() as seconds:
            tops = decode_states(self.reasoner, states[0])
            if self.reasoner.method.iterates or not self.passes:
                self.passes.append(tops)
            else:
                self.passes[0] = [*self.passes[0], *tops]
            iterated = self.reasoner.method.iterates
            passes = len(self.passes) - 1 if iterated else len(self.passes[0])
            self.tell(Progress(list(self.passes), "", passes, seconds))

    def thought(self, thinking: ReasoningResult) -> None:
        """The latents are done."""
        self.thinking = thinking

    def written(self, token: int) -> None:
        """A token was generated."""
        self.tokens.append(token)
        if time.perf_counter() - self.told < self.every:
            return
        with self._clock_stopped() as seconds:
            text = self.reasoner.tokenizer.decode(self.tokens, skip_special_tokens=True)
            passes = self.thinking.forward_passes + len(self.tokens)
            text = self.thinking.prompt_text + text
            self.tell(Progress(list(self.passes), text, passes, seconds))

    def ended(self, answer: Answer, seconds: float) -> None:
        """The answer is whole."""
        passes = list(self.passes)
        self.tell(Progress(passes, answer.text, answer.forward_passes, seconds, answer))

    @property
    def seconds(self) -> float:
        """Worked so far."""
        _synchronise(self.reasoner)
        return time.perf_counter() - self.begin - self.paused

    @contextmanager
    def _clock_stopped(self) -> Iterator[float]:
        """Gives the seconds worked so far."""
        seconds, stopped = self.seconds, time.perf_counter()
        yield seconds
        self.told = time.perf_counter()
        self.paused += self.told - stopped


class _Follow(StoppingCriteria):
    """Reads each new token of one row, and ends nothing."""

    def __init__(self, report: _Report):
        self.report = report

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """[1], false."""
        self.report.written(int(input_ids[0, -1]))
        return torch.zeros(1, dtype=torch.bool, device=input_ids.device)


def _alone(
    reasoner: Reasoner, question: str, num_iterations: int | None, max_new_tokens: int
) -> float:
    """Seconds of an answer that nobody watches."""
    begin = time.perf_counter()
    reasoner.answer(reasoner.think([question], num_iterations), max_new_tokens)
    _synchronise(reasoner)
    return time.perf_counter() - begin


def _synchronise(reasoner: Reasoner) -> None:
    if reasoner.device.type == "cuda":
        torch.cuda.synchronize(reasoner.device)
