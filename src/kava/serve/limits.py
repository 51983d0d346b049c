"""What a service allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how requests are put together.

    question_tokens, new_tokens: per answer; `new_tokens` is also what a request gets that names
        no number.
    body_bytes: of a request.   timeout: seconds from its acceptance to the end of its answer.
    arrival: seconds in which a request has to arrive, and an answer that stalls has to be read on.
    connections: open at once.   held_bytes: of all requests that are not answered yet.
    batch_size, delay, queue_length: see `Batcher`.
    """

    question_tokens: int = 1024
    new_tokens: int = 256
    body_bytes: int = 1_000_000
    timeout: float = 60.0
    arrival: float = 10.0
    connections: int = 512
    held_bytes: int = 64_000_000
    batch_size: int = 32
    delay: float = 0.002
    queue_length: int = 256
