"""A question that waits for its answer, and the pieces in which the answer is returned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

STOP, LENGTH, CANCELLED, TIMEOUT, ERROR = "stop", "length", "cancelled", "timeout", "error"


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen; temperature 0 is greedy decoding."""

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


@dataclass(eq=False)
class Job:
    """A question to answer.

    question: the token ids of the question (`Encoder.question`).
    emit: called with each piece, from any thread. If `stream` is false, it is called only with the
        last piece, which then contains the whole text.
    stop: strings that end the answer where the first of them begins in the generated text. The
        prompt that the model is given ("The answer is:") is not searched.
    num_iterations: T, or `auto`; None is the recipe's value. Only jobs with the same value share a
        batch.
    deadline: time, as given by `time.monotonic`, after which the answer is no longer needed.
    """

    question: list[int]
    emit: Callable[[Piece], None]
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    num_iterations: int | Literal["auto"] | None = None
    stream: bool = False
    deadline: float = math.inf
    cancelled: bool = False
    done: bool = False

    def unwanted_reason(self) -> str | None:
        """Return why this answer is no longer needed, or None if it still is."""
        if time.monotonic() > self.deadline:
            return TIMEOUT
        return CANCELLED if self.cancelled else None

    def end(self, piece: Piece) -> None:
        """Emit the last piece; does nothing after the first call."""
        if not self.done:
            self.done = True
            self.emit(piece)

    def end_if_unwanted(self) -> bool:
        """End the job if its answer is no longer needed; return whether it has ended."""
        if reason := self.unwanted_reason():
            self.end(Piece("", reason))
        return self.done
