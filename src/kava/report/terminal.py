"""The quickstart's table."""

from collections.abc import Sequence

from rich.table import Table

from kava.report.plots import label
from kava.report.rows import TableRow
from kava.report.table import MeasuredValue, accuracy, caption
from kava.system.tables import terminal_table
from kava.system.text import format_duration

HEADINGS = (
    "method", "accuracy (%)", "passes", "ms alone", "ms in a batch", "training time",
)  # fmt: skip
TEXT_COLUMNS = (0, 5)  # the columns that hold no numbers
NOT_TRAINED = "the backbone itself"


def quickstart_table(rows: Sequence[TableRow], title: str | None = None) -> Table:
    """Return a table for a rich console, with one row per method.

    Args:
        rows: each with `method`, `accuracy` and `accuracy_se` in percent, `n`, `forward_passes`,
            `ms_per_question` (a question alone), `ms_per_question_in_batch`, and `train_seconds`,
            None if nothing was trained (the backbone); with more than one of `seeds`, also
            `accuracy_std`, which is then shown after ±. With `missing_seeds`, the number of seeds
            that count is shown; without any seed, the numbers are None. A `name` other than the
            method's is shown instead of it. See `report.rows`.
    """
    bold = [place for place, row in enumerate(rows) if label(row) == "KaVa"]
    lines = list(map(cells, rows))
    return terminal_table(HEADINGS, lines, TEXT_COLUMNS, title, quickstart_caption(rows), bold)


def cells(row: TableRow) -> tuple[str, ...]:
    """Return a row as text, in the order of `HEADINGS`."""
    return (
        label(row),
        accuracy(row).text(),
        MeasuredValue(row["forward_passes"]).text(),
        MeasuredValue(row["ms_per_question"]).text(),
        MeasuredValue(row["ms_per_question_in_batch"]).text(),
        _training_time(row),
    )


def quickstart_caption(rows: Sequence[TableRow]) -> str:
    """Return the table's caption: the number of problems, what ± means, and what passes are."""
    return f"{caption(rows, ' held-out problems')}; passes are forward passes"


def _training_time(row: TableRow) -> str:
    if row["train_seconds"] is not None:
        return format_duration(row["train_seconds"])
    return "-" if row.get("seeds") or row.get("missing_seeds") else NOT_TRAINED
