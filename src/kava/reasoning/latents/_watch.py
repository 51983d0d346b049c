"""Being told of each pass of the latents as it ends, whatever rule makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from kava.shapes import Float

Told = Callable[[Float[Tensor, "batch latents hidden"]], None]

_watcher: ContextVar[Told | None] = ContextVar("kava_latent_watcher", default=None)


@contextmanager
def watch_passes(told: Told) -> Iterator[None]:
    """Inside the block, `told` gets last layer's states of the latents of each pass, [B, n, d].

    Of latents that are refined all at once, n is M, from pass 0 to pass T. Of latents that are made
    one at a time, n is 1: the latent of that call.
    """
    token = _watcher.set(told)
    try:
        yield
    finally:
        _watcher.reset(token)


def report_pass(states: Float[Tensor, "batch latents hidden"]) -> None:
    """A latent rule says that a pass has ended."""
    told = _watcher.get()
    if told is not None:
        told(states)
