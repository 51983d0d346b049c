"""The table that all commands of `kava bench` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column is a name.

    In a narrow terminal, headings are wrapped and cells are not.
    """
    made = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for place, heading in enumerate(headings):
        widest = max((len(line[place]) for line in lines), default=0)
        widest = max(widest, *map(len, heading.split()))
        made.add_column(heading, justify="right" if place else "left", min_width=widest)
    for line in lines:
        made.add_row(*line)
    return made
