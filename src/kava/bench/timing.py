"""Time several functions, interleaved."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from kava.system.memory import synchronise

Piece = Callable[[], Any]


def time_interleaved(
    pieces: Mapping[str, Piece],
    repeats: int,
    warm_up: int,
    device: torch.device,
    on_round: Callable[[int], None] = lambda _: None,
    before: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Return the seconds of each function, measured `repeats` times in interleaved rounds.

    Each round runs every function once, so that a temporary disturbance of the machine affects all
    of them alike.

    Args:
        warm_up: number of rounds before, which are not timed.
        on_round: called with the number of finished rounds.
        before: called with the number of finished rounds before each round, which is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in pieces}
    for done in range(warm_up + repeats):
        before(done)
        for name, piece in pieces.items():
            synchronise(device)
            begin = time.perf_counter()
            piece()
            synchronise(device)
            if done >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
        on_round(done + 1)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median and the quartiles of some times, in milliseconds."""
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive")
        if len(seconds) > 1
        else [seconds[0]] * 3
    )
    return {name: round(1000 * s, 3) for name, s in zip(_NAMES, (middle, low, high), strict=True)}


_NAMES = ("median", "quartile_1", "quartile_3")


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Return median and quartiles of the ratio of two lists of times, taken round by round."""
    pairs = [1e-3 * a / b for a, b in zip(numerator, denominator, strict=True)]
    return spread(pairs)


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the machine's FLOPs per second in its fastest large matrix product.

    No training step can be faster. It is the best of several sizes, each run for a quarter of a
    second.
    """
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        a @ b
        begin, seconds = time.perf_counter(), 0.0
        while seconds < 0.25:
            synchronise(device)
            start = time.perf_counter()
            a @ b
            synchronise(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
            seconds = time.perf_counter() - begin
    return best
