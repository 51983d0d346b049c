"""GSM8K test: 1,319 school problems in words (Cobbe et al., arXiv:2110.14168)."""

from __future__ import annotations

from kava.data.tasks import Task
from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("GSM8K test", "gsm8k-test", 1_319, "openai/gsm8k", config="main")


def load(file: str | None = None, limit: int | None = None) -> Task:
    """The test set from the Hub, or from `file` in any form of `load_examples` or as published.

    Raises:
        KavaError: a broken row; without `limit`, another number of rows than 1,319.
    """
    return Task("gsm8k", VERSION, "test", *SOURCE.load(file, limit))
