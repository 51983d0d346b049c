"""The limits of a service."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how requests are batched.

    question_tokens: maximum number of tokens of a question.
    new_tokens: maximum number of new tokens per answer; also the default of a request that gives no
        number.
    num_iterations: maximum number of latent iterations that a request may ask for, and after which
        `auto` stops; if not given, twice the recipe's number, and at least 1.
    body_bytes: maximum size of a request body.
    timeout: seconds from accepting a request to the end of its answer.
    arrival: seconds within which a request must arrive, and within which a client that has stopped
        reading its answer must read on.
    connections: maximum number of open connections.
    held_bytes: maximum total size of all requests that are not answered yet.
    batch_size, delay, queue_length: see `Batcher`.
    """

    question_tokens: int = 1024
    new_tokens: int = 256
    num_iterations: int | None = None
    body_bytes: int = 1_000_000
    timeout: float = 60.0
    arrival: float = 10.0
    connections: int = 512
    held_bytes: int = 64_000_000
    batch_size: int = 32
    delay: float = 0.002
    queue_length: int = 256
