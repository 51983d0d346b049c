"""Metrics of the service, for Prometheus."""

from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from kava.serve.batcher import Batcher
from kava.serve.jobs import LENGTH, STOP, Piece

_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("kava_requests", "HTTP requests", ["route", "status"], **options)
        self.rejected = Counter(
            "kava_rejected", "Requests refused because the queue was full", **options
        )
        self.answers = Counter("kava_answers", "Answers by finish reason", ["reason"], **options)
        self.tokens = Counter(
            "kava_generated_tokens", "Generated tokens of finished answers", **options
        )
        self.passes = Counter(
            "kava_forward_passes",
            "Sequential forward passes after the questions of these answers",
            **options,
        )
        self.latents = Counter("kava_latents", "Latent tokens of these answers", **options)
        self.sizes = Histogram(
            "kava_batch_size", "Questions per batch",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), **options,
        )  # fmt: skip
        self.seconds = Histogram("kava_batch_seconds", "Seconds per batch", **options)
        self.waiting = Gauge("kava_waiting", "Questions in the queue", **options)

    def watch(self, batcher: Batcher) -> None:
        """Report the length of a batcher's queue whenever the metrics are read."""
        self.waiting.set_function(lambda: batcher.waiting)

    def count_batch(self, size: int, seconds: float) -> None:
        """Count a batch; called from the model's thread."""
        self.sizes.observe(size)
        self.seconds.observe(seconds)

    def count_answer(self, last: Piece) -> None:
        """Count an answer by its last piece, however it ended; called from any thread."""
        self.answers.labels(last.reason).inc()
        if last.reason in (STOP, LENGTH):
            self.tokens.inc(last.generated_tokens)
            self.passes.inc(last.forward_passes)
            self.latents.inc(last.latents)

    def count_request(self, path: str, status: int) -> None:
        """Count a request; all unknown paths are counted as one route."""
        route = next((r for r in _ROUTES if path == r or path.startswith(f"{r}/")), "other")
        self.requests.labels(route, str(status)).inc()

    def text(self) -> tuple[bytes, str]:
        """Return all metrics as text, and the media type of that text."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
