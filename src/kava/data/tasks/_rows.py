"""Turn the rows of published test sets, in the formats of their authors, into examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import chain

from kava.data import hub_rows
from kava.data.answers import plain_number
from kava.data.files import Row, read_rows, to_examples
from kava.errors import KavaError
from kava.system import assets
from kava.types import Example

QUESTIONS = ("question", "input")  # `input` and `target` are the names used by the authors of PAL
ANSWERS = ("answer", "target", "final_ans", "Answer")
_CALCULATOR = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True)
class Source:
    """Where a test set comes from and how many rows it has.

    title: its name in messages.
    stem: prefix of the ids of rows without an id, `<stem>-<index>`.
    hub: its name on the Hugging Face Hub.
    splits: the splits it consists of, in this order.
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
        """Load the examples; return them with a description of their source.

        Args:
            file: a local copy; by default the rows come from the Hub.
            limit: load only the first `limit` examples.
            read: converts rows of the file to rows with the usual fields; `unfold` if None.

        Raises:
            KavaError: if rows cannot be loaded or are invalid; or, without `limit`, if their number
                differs from the published one.
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
    """Yield rows with the fields `question`, `steps` (empty if there is none) and `answer`.

    A solution of GSM8K, which is lines followed by `#### 18`, is split into steps and answer. The
    calculator annotations are removed (`16-3 = <<16-3=13>>13` becomes `16-3 = 13`), because they
    are of no use to a reader.
    """
    for where, row in rows:
        row = _renamed(_renamed(row, "question", QUESTIONS), "answer", ANSWERS)
        solution = row.get("answer")
        whole = "question" in row and "answer" in row  # `to_example` rejects the others
        if whole and "steps" not in row and "cot" not in row:
            row["steps"] = []
            if isinstance(solution, str) and "####" in solution:
                lines, _, row["answer"] = solution.rpartition("####")
                row["steps"] = [
                    _CALCULATOR.sub("", line).strip() for line in lines.splitlines() if line.strip()
                ]
        yield where, row


def with_plain_answers(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows of `unfold` with each numeric answer written by `plain_number`.

    This is for data sets whose answers a program wrote. `2.0107e-06` in one copy and the same
    number in binary in another copy then become the same text.
    """
    for where, row in unfold(rows):
        if isinstance(row.get("answer"), str):  # `to_example` converts numbers itself
            with suppress(InvalidOperation):  # not a number: unchanged
                row["answer"] = plain_number(Decimal(row["answer"]))
        yield where, row


def _renamed(row: dict, name: str, names: tuple[str, ...]) -> dict:
    """Return the row with the first of the fields `names` that it has renamed to `name`."""
    if name in row:
        return dict(row)
    found = next((other for other in names if other in row), None)
    return {name if key == found else key: value for key, value in row.items()}
