"""The quickstart's table, for the terminal and for Markdown, from the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kava.report.plots import look, spread, spread_words

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
HEADINGS = ("method", "accuracy (%)", "forward passes", "ms per question", "training time")
UNTRAINED = "the backbone itself"


def quickstart_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """One row per method, for a rich console.

    Args:
        rows: each with `method`, `accuracy` and `accuracy_se` in percent, `n`, `forward_passes`,
            `ms_per_question`, and `train_seconds`, None where nothing was trained (CoT); with
            more than one of `seeds`, also `accuracy_std`, which then stands behind ±.
    """
    from rich import box
    from rich.table import Table

    # Without its edges the table fits a terminal of 80 columns.
    table = Table(title=title, caption=caption(rows), box=box.SIMPLE_HEAD, show_edge=False)
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place in (1, 2, 3) else "left")
    for row in rows:
        table.add_row(*cells(row), style="bold" if row["method"] == "kava" else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as a Markdown table, with a line below that says what ± is."""
    lines = [HEADINGS, ("---", "---:", "---:", "---:", "---"), *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{caption(rows)}\n"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of `HEADINGS`."""
    return (
        look(row["method"]).label,
        f"{row['accuracy']:.1f} ± {spread(row):.1f}",
        _number(row["forward_passes"]),
        _number(row["ms_per_question"]),
        UNTRAINED if row["train_seconds"] is None else duration(row["train_seconds"]),
    )


def caption(rows: Sequence[Row]) -> str:
    """What the numbers were measured on."""
    counts = sorted({row["n"] for row in rows})
    problems = " or ".join(f"{n:,}" for n in counts) or "no"
    return f"n = {problems} held-out problems; ± is {_what(rows)}"


def duration(seconds: float) -> str:
    """`47 s`, `2 min 05 s`, `1 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _what(rows: Sequence[Row]) -> str:
    words = spread_words(rows)
    mixed = len({len(row.get("seeds") or ()) > 1 for row in rows}) > 1
    return f"{words}, one standard error for a single run" if mixed else words


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
