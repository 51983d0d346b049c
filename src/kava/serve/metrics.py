"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as written

from kava.serve.batcher import CANCELLED, TIMEOUT, Batcher, Observed

_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry}
        self.requests = Counter("kava_requests", "HTTP requests", ["route", "status"], **made)
        self.rejected = Counter("kava_rejected", "Requests for which the queue had no room", **made)
        self.answers = Counter("kava_answers", "Answers by how they ended", ["reason"], **made)
        self.tokens = Counter("kava_generated_tokens", "Tokens generated", **made)
        self.passes = Counter(
            "kava_forward_passes",
            "Sequential backbone calls after the question, per answer",
            **made,
        )
        self.latents = Counter("kava_latents", "Latent tokens thought", **made)
        self.sizes = Histogram(
            "kava_batch_size", "Questions answered together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), **made,
        )  # fmt: skip
        self.seconds = Histogram("kava_batch_seconds", "Time of a batch", **made)
        self.waiting = Gauge("kava_waiting", "Questions in the queue", **made)

    def watch(self, batcher: Batcher) -> None:
        """Ask a batcher for the length of its queue whenever metrics are read."""
        self.waiting.set_function(lambda: batcher.waiting)

    def answered(self, batch: Observed) -> None:
        """Count a batch; called from the model's thread."""
        self.sizes.observe(batch.size)
        self.seconds.observe(batch.seconds)
        for piece in batch.last:
            self.answers.labels(piece.reason).inc()
            if piece.reason not in (CANCELLED, TIMEOUT):
                self.tokens.inc(piece.generated_tokens)
                self.passes.inc(piece.forward_passes)
                self.latents.inc(piece.latents)

    def count(self, path: str, status: int) -> None:
        """Count a request; addresses that do not exist are one route."""
        route = next((r for r in _ROUTES if path == r or path.startswith(f"{r}/")), "other")
        self.requests.labels(route, str(status)).inc()

    def text(self) -> tuple[bytes, str]:
        """All metrics, and their media type."""
        return written(self.registry), CONTENT_TYPE_LATEST
