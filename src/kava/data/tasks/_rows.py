"""Turn the rows of published test sets, in the formats of their authors, into examples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import chain
from typing import Any

from kava.data import call, hub_rows, load_file
from kava.data.answers import plain_number
from kava.data.files import read_rows
from kava.data.rows import DEFAULT_COLUMNS, Columns, Row, to_examples
from kava.data.tasks import Task
from kava.errors import KavaError
from kava.types import Example

ReadRow = Callable[[dict[str, Any]], dict[str, Any] | None]


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
        read: ReadRow | None = None,
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
            instead = "a local copy, --file FILE"
            parts = (hub_rows(self.hub, split, self.config, instead) for split in self.splits)
            rows = chain.from_iterable(parts)
        description = ", ".join(filter(None, [self.config, " + ".join(self.splits)]))
        source = str(file or f"{self.hub} ({description})")
        if read:
            rows = ((where, new) for where, row in rows if (new := read(row)) is not None)
        examples = to_examples(rows, source, self.stem, limit, columns)
        if self.by_program:
            examples = [replace(one, answer=_write_in_digits(one.answer)) for one in examples]
        if limit is None and len(examples) != self.rows:
            raise KavaError(
                f"{source} has {len(examples):,} rows and {self.title} has {self.rows:,}; set a"
                " limit to use fewer",
                code="data.other-row-count",
                key=source,
            )
        return examples, source

    def loader(self, task: str, version: int, read: ReadRow | None = None) -> Callable[..., Task]:
        """Return the function `load` of the task that consists of this test set."""

        def load(
            file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
        ) -> Task:
            """Load the test set from the Hub or `file`; see `Source.load`."""
            return Task(task, version, "test", *self.load(file, limit, columns, read))

        return load


def read_or_generate(
    name: str,
    generate: Callable[..., list[Example]],
    file: str | None,
    limit: int | None,
    count: int,
    options: dict[str, Any],
) -> tuple[list[Example], str]:
    """Load the rows of `file`, or generate test problems; return them with their source.

    Args:
        name: the task, for messages.
        generate: a function of a module of `kava.data`.
        limit: at most so many examples.
        count: the number of problems that the task consists of, without a file.
        options: those of `generate`, or with a file those of `kava.data.load_file`.

    Raises:
        KavaError: if an option is unknown or has a wrong value, or a row is invalid.
    """
    if file:
        given = {"path": file, "limit": limit, "split": "test", "need_steps": False}
        return call(load_file, f"task {name}", given, options), file
    wanted = {"split": "test", "count": min(count, limit or count)}
    settings = ", ".join(f"{key}={value}" for key, value in {"count": count, **options}.items())
    source = f"{generate.__module__} ({settings})"
    return call(generate, f"task {name}", wanted, options), source


def _write_in_digits(answer: str) -> str:
    """Format a number with `plain_number`; return any other answer unchanged."""
    try:
        return plain_number(Decimal(answer))
    except InvalidOperation:
        return answer
