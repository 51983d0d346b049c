"""A hook that is called with the latents' hidden states after each pass, for every latent rule."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from kava.shapes import Float

PassCallback = Callable[[Float[Tensor, "batch latents hidden"]], None]

_watcher: ContextVar[PassCallback | None] = ContextVar("kava_latent_watcher", default=None)


@contextmanager
def watch_passes(callback: PassCallback) -> Iterator[None]:
    """Call `callback` after each pass inside the `with` block, with the latents' hidden states.

    Args:
        callback: called with the last layer's hidden states, [batch, latents, hidden]. If all
            latents are refined in parallel, it gets all M of them, from pass 0 to pass T. If
            latents are generated one at a time, it gets one latent per call.
    """
    token = _watcher.set(callback)
    try:
        yield
    finally:
        _watcher.reset(token)


def report_pass(states: Float[Tensor, "batch latents hidden"]) -> None:
    """Pass the hidden states of a finished pass to the watcher, if there is one.

    Args:
        states: [batch, latents, hidden], see `watch_passes`.
    """
    callback = _watcher.get()
    if callback is not None:
        callback(states)
