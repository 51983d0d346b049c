"""Turn the rows of published test sets, in the formats of their authors, into examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import chain

from kava.data import hub_rows
from kava.data.answers import plain_number
from kava.data.files import read_rows
from kava.data.rows import DEFAULT_COLUMNS, Columns, Row, to_examples
from kava.errors import KavaError
from kava.types import Example


@dataclass(frozen=True)
class Source:
    """Where a test set comes from and how many rows it has.

    title: its name in messages.
    stem: prefix of the ids of rows without an id, `<stem>-<index>`.
    hub: its name on the Hugging Face Hub.
    splits: the splits it consists of, in this order.
    by_program: whether a program wrote the answers. Numbers among them are then written in digits,
        so that `2.0107e-06` in one copy and the same number in binary in another are the same text.
    """

    title: str
    stem: str
    rows: int
    hub: str
    splits: tuple[str, ...] = ("test",)
    config: str | None = None
    by_program: bool = False

    def load(
        self,
        file: str | None,
        limit: int | None,
        columns: Columns = DEFAULT_COLUMNS,
        read: Callable[[Iterable[Row]], Iterable[Row]] | None = None,
    ) -> tuple[list[Example], str]:
        """Load the examples; return them with a description of their source.

        Args:
            file: a local copy; by default the rows come from the Hub.
            limit: load only the first `limit` examples.
            columns: the names of the fields, if they are not the usual ones.
            read: converts rows of the file to rows with the usual fields (`kava.data.rows`).

        Raises:
            KavaError: if rows cannot be loaded or are invalid; or, without `limit`, if their number
                differs from the published one.
        """
        if file:
            rows: Iterable[Row] = read_rows(file, "test", columns.field)
        else:
            parts = (
                hub_rows(self.hub, split, self.config, instead="a local copy, --file FILE")
                for split in self.splits
            )
            rows = chain.from_iterable(parts)
        description = ", ".join(filter(None, [self.config, " + ".join(self.splits)]))
        source = str(file or f"{self.hub} ({description})")
        examples = to_examples(read(rows) if read else rows, source, self.stem, limit, columns)
        if self.by_program:
            examples = [replace(one, answer=_in_digits(one.answer)) for one in examples]
        if limit is None and len(examples) != self.rows:
            raise KavaError(
                f"{source} has {len(examples):,} rows and {self.title} has {self.rows:,}; set a"
                " limit to use fewer",
                code="data.other-row-count",
                key=source,
            )
        return examples, source


def _in_digits(answer: str) -> str:
    """Write a number by `plain_number`; leave every other answer as it is."""
    try:
        return plain_number(Decimal(answer))
    except InvalidOperation:
        return answer
