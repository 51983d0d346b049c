"""GSM8K test: 1,319 school problems in words (Cobbe et al., arXiv:2110.14168)."""

from __future__ import annotations

import re
from pathlib import Path

from kava.data import hub_rows
from kava.data.files import Row, read_rows, to_examples
from kava.errors import KavaError
from kava.tasks import Task

VERSION = 1
ROWS = 1_319
HUB = "openai/gsm8k"

_CALCULATOR = re.compile(r"<<[^>]*>>")


def load(file: str | None = None, limit: int | None = None) -> Task:
    """The test set from the Hub, or from `file` in any form of `load_examples` or as published.

    Raises:
        KavaError: a broken row; without `limit`, another number of rows than 1,319.
    """
    if file:
        rows = read_rows(Path(file).expanduser())
    else:
        rows = hub_rows(HUB, "test", "main", instead="a local copy, file=FILE")
    source = str(file or f"{HUB} (main, test)")
    examples = to_examples(map(_unfold, rows), source, "gsm8k-test", limit)
    if limit is None and len(examples) != ROWS:
        raise KavaError(
            f"{source} has {len(examples):,} rows and GSM8K test has {ROWS:,}; set a limit to use"
            " fewer"
        )
    return Task("gsm8k", VERSION, "test", examples, source)


def _unfold(located: Row) -> Row:
    """Steps and answer out of a published solution: lines, then `#### 18`.

    The calculator's notes go (`16-3 = <<16-3=13>>13` reads `16-3 = 13`): a reader has no use.
    """
    where, row = located
    solution = row.get("answer")
    if "steps" in row or "cot" in row or not isinstance(solution, str) or "####" not in solution:
        return located
    lines, _, answer = solution.rpartition("####")
    steps = [_CALCULATOR.sub("", line).strip() for line in lines.splitlines() if line.strip()]
    return where, {**row, "steps": steps, "answer": answer}
