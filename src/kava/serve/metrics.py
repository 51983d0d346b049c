"""Metrics of the service, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as written

from kava.serve.batcher import Batcher
from kava.serve.jobs import LENGTH, STOP, Piece

_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry}
        self.requests = Counter("kava_requests", "HTTP requests", ["route", "status"], **made)
        self.rejected = Counter("kava_rejected", "Requests for which the queue had no room", **made)
        self.answers = Counter("kava_answers", "Answers by how they ended", ["reason"], **made)
        self.tokens = Counter(
            "kava_generated_tokens", "Tokens of answers that came to their end", **made
        )
        self.passes = Counter(
            "kava_forward_passes",
            "Sequential backbone calls after the questions of these answers",
            **made,
        )
        self.latents = Counter("kava_latents", "Latent tokens of these answers", **made)
        self.sizes = Histogram(
            "kava_batch_size", "Questions answered together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), **made,
        )  # fmt: skip
        self.seconds = Histogram("kava_batch_seconds", "Time of a batch", **made)
        self.waiting = Gauge("kava_waiting", "Questions in the queue", **made)

    def watch(self, batcher: Batcher) -> None:
        """Report the length of a batcher's queue whenever the metrics are read."""
        self.waiting.set_function(lambda: batcher.waiting)

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch; called from the model's thread."""
        self.sizes.observe(size)
        self.seconds.observe(seconds)

    def answered(self, last: Piece) -> None:
        """Count an answer by its last piece, however it ended; called from any thread."""
        self.answers.labels(last.reason).inc()
        if last.reason in (STOP, LENGTH):
            self.tokens.inc(last.generated_tokens)
            self.passes.inc(last.forward_passes)
            self.latents.inc(last.latents)

    def count(self, path: str, status: int) -> None:
        """Count a request; all unknown paths are counted as one route."""
        route = next((r for r in _ROUTES if path == r or path.startswith(f"{r}/")), "other")
        self.requests.labels(route, str(status)).inc()

    def text(self) -> tuple[bytes, str]:
        """Return all metrics as text, and the media type of that text."""
        return written(self.registry), CONTENT_TYPE_LATEST
