"""The quickstart's table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from kava.report.plots import label, spread, spread_words
from kava.report.rows import TableRow
from kava.system.tables import terminal_table
from kava.system.text import format_duration

HEADINGS = ("method", "accuracy (%)", "forward passes", "ms per question", "training time")
LEFT = (0, 4)  # the columns that hold no numbers
UNTRAINED = "the backbone itself"


def quickstart_table(rows: Sequence[TableRow], title: str | None = None) -> Table:
    """Return a table for a rich console, with one row per method.

    Args:
        rows: each with `method`, `accuracy` and `accuracy_se` in percent, `n`, `forward_passes`,
            `ms_per_question`, and `train_seconds`, None if nothing was trained (the backbone); with
            more than one of `seeds`, also `accuracy_std`, which is then shown after ±. With
            `missing_seeds`, the number of seeds that count is shown; without any seed, the numbers
            are None. A `name` other than the method's is shown instead of it. See `report.rows`.
    """
    bold = [place for place, row in enumerate(rows) if label(row) == "KaVa"]
    lines = list(map(cells, rows))
    return terminal_table(HEADINGS, lines, LEFT, title, caption(rows), bold)


def cells(row: TableRow) -> tuple[str, ...]:
    """Return a row as text, in the order of `HEADINGS`."""
    return (
        label(row),
        _accuracy(row),
        _number(row["forward_passes"]),
        _number(row["ms_per_question"]),
        _training_time(row),
    )


def caption(rows: Sequence[TableRow]) -> str:
    """Return the table's caption: the number of problems, and what ± means."""
    counts = sorted({row["n"] for row in rows if row["n"] is not None})
    problems = " or ".join(f"{n:,}" for n in counts) or "no"
    share = "; (k/m): only k of m seeds" if any(row.get("missing_seeds") for row in rows) else ""
    return f"n = {problems} held-out problems; ± is {spread_words(rows)}{share}"


def _accuracy(row: TableRow) -> str:
    seeds, missing = row.get("seeds") or (), row.get("missing_seeds") or ()
    share = f" ({len(seeds)}/{len(seeds) + len(missing)})" if missing else ""
    if row["accuracy"] is None:
        return f"-{share}"
    return f"{row['accuracy']:.1f} ± {spread(row):.1f}{share}"


def _training_time(row: TableRow) -> str:
    if row["train_seconds"] is not None:
        return format_duration(row["train_seconds"])
    return "-" if row.get("seeds") or row.get("missing_seeds") else UNTRAINED


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
