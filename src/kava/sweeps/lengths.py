"""Lengths of real examples, for estimates where the examples are not on this machine.

A padded micro-batch is as wide as its longest example. Examples of equal length would therefore
hide pads, and one set of examples that is used again and again would hide the costs of new shapes:
plans of kernels, compilation, and fragmentation in the allocator.
"""

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

#: Counts of GSM8k-Aug, made by `tools/lengths.py`; lengths are rounded up to multiples of `BIN`.
COUNTS = Path(__file__).with_name("gsm8k_lengths.json")
NAME = "[question, reasoning, examples] of 9,915 examples of GSM8k-Aug, tokens of SmolLM2"
BIN = 4


def draw(seed: int) -> Iterator[tuple[int, int]]:
    """Yield lengths of a question, with BOS, and of its whole chain of thought, without end."""
    pairs, numbers = _token_counts()
    source = random.Random(seed)
    while True:
        yield from source.choices(pairs, numbers, k=64)


@cache
def _token_counts() -> tuple[list[tuple[int, int]], list[int]]:
    counted = json.loads(COUNTS.read_text(encoding="utf-8"))[NAME]
    return [(question, reasoning) for question, reasoning, _ in counted], [n for *_, n in counted]
