"""Held-out problems made on the spot by `kava.data.synthetic`: no download."""

from __future__ import annotations

from typing import Any

from kava.data import load_examples
from kava.data.tasks import Task
from kava.errors import KavaError

VERSION = 1


def load(
    file: str | None = None,
    limit: int | None = None,
    split: str = "test",
    count: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Task:
    """`count` problems of a split, or `limit` if that is fewer.

    Args:
        options: those of `kava.data.synthetic.generate`, such as `max_steps`.

    Raises:
        KavaError: a file, unknown options, or values that the generator refuses.
    """
    if file:
        raise KavaError(
            "task synthetic makes its own problems; leave out the file",
            code="data.file-unwanted",
            key="file",
        )
    options = {"seed": seed, **options}
    examples = load_examples("synthetic", split, limit=limit, options={"count": count, **options})
    told = ", ".join(f"{key}={value}" for key, value in options.items())
    return Task("synthetic", VERSION, split, examples, f"kava.data.synthetic ({told})")
