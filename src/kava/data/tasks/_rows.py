"""Rows of published test sets, in the forms in which they were published, as examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import chain

from kava.data import hub_rows
from kava.data.files import Row, plain_number, read_rows, to_examples
from kava.errors import KavaError
from kava.system import assets
from kava.types import Example

QUESTIONS = ("question", "input")  # `input`, `target`: as the authors of PAL published
ANSWERS = ("answer", "target", "final_ans", "Answer")
_CALCULATOR = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True)
class Source:
    """Where a test set comes from and how many rows it has.

    title: its name in messages. stem: of the ids of rows that have none, `<stem>-<index>`.
    hub: its name on the Hugging Face Hub. splits: those that make it up, in this order.
    """

    title: str
    stem: str
    rows: int
    hub: str
    splits: tuple[str, ...] = ("test",)
    config: str | None = None

    def load(
        self,
        file: str | None,
        limit: int | None,
        read: Callable[[Iterable[Row]], Iterable[Row]] | None = None,
    ) -> tuple[list[Example], str]:
        """The examples, and where they come from in words.

        Args:
            file: a local copy; else the Hub is asked.
            limit: the first `limit` examples only.
            read: what makes rows of the usual fields out of those of the file; `unfold` if None.

        Raises:
            KavaError: rows that cannot be had, a broken row; without `limit`, another number of
                rows than published.
        """
        if file:
            rows: Iterable[Row] = read_rows(assets.expand_user(file))
        else:
            parts = (
                hub_rows(self.hub, split, self.config, instead="a local copy, --file FILE")
                for split in self.splits
            )
            rows = chain.from_iterable(parts)
        told = ", ".join(filter(None, [self.config, " + ".join(self.splits)]))
        source = str(file or f"{self.hub} ({told})")
        examples = to_examples((read or unfold)(rows), source, self.stem, limit)
        if limit is None and len(examples) != self.rows:
            raise KavaError(
                f"{source} has {len(examples):,} rows and {self.title} has {self.rows:,}; set a"
                " limit to use fewer",
                code="data.other-row-count",
                key=source,
            )
        return examples, source


def unfold(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows with the fields `question`, `steps` (empty where there are none) and `answer`.

    A solution of GSM8K, lines and then `#### 18`, is taken apart. The calculator's notes go
    (`16-3 = <<16-3=13>>13` reads `16-3 = 13`): a reader has no use.
    """
    for where, row in rows:
        row = _renamed(_renamed(row, "question", QUESTIONS), "answer", ANSWERS)
        solution = row.get("answer")
        whole = "question" in row and "answer" in row  # one that is not is refused as it stands
        if whole and "steps" not in row and "cot" not in row:
            row["steps"] = []
            if isinstance(solution, str) and "####" in solution:
                lines, _, row["answer"] = solution.rpartition("####")
                row["steps"] = [
                    _CALCULATOR.sub("", line).strip() for line in lines.splitlines() if line.strip()
                ]
        yield where, row


def with_plain_answers(rows: Iterable[Row]) -> Iterator[Row]:
    """The same with answers as `plain_number`, for sets whose answers a program wrote.

    `2.0107e-06` in one copy and the same as a binary number in another are one text then.
    """
    for where, row in unfold(rows):
        if isinstance(row.get("answer"), str):  # a number `to_example` writes out
            with suppress(InvalidOperation):  # no number: kept as it is
                row["answer"] = plain_number(Decimal(row["answer"]))
        yield where, row


def _renamed(row: dict, name: str, names: tuple[str, ...]) -> dict:
    """The row with the first of `names` that it has under `name`."""
    if name in row:
        return dict(row)
    found = next((other for other in names if other in row), None)
    return {name if key == found else key: value for key, value in row.items()}
