"""Tables of text: for the terminal, and in Markdown."""

from collections.abc import Collection, Sequence

from rich import box
from rich.table import Table

Lines = Sequence[Sequence[str]]


def terminal_table(
    headings: Sequence[str],
    lines: Lines,
    left_aligned: Collection[int] = (0,),
    title: str | None = None,
    caption: str | None = None,
    bold: Collection[int] = (),
) -> Table:
    """Return a table for a rich console.

    In a narrow terminal, headings are wrapped and cells are not. It has no outer edges, so that
    more of them fit into 80 columns.

    Args:
        left_aligned: indices of the columns that are aligned to the left; the others hold numbers.
        bold: indices of the lines in bold.
    """
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False)
    for place, heading in enumerate(headings):
        widest = max(map(len, [*heading.split(), *(line[place] for line in lines)]), default=0)
        side = "left" if place in left_aligned else "right"
        table.add_column(heading, justify=side, min_width=widest)
    for place, line in enumerate(lines):
        table.add_row(*line, style="bold" if place in bold else None)
    return table


def markdown_table(
    headings: Sequence[str] | None, lines: Lines, left: Collection[int] = (0,)
) -> str:
    """Return a table in Markdown, without a newline at its end; cells must be escaped already.

    Args:
        headings: None for a table without headings.
        left: indices of the columns that are aligned to the left; the others hold numbers.
    """
    columns = range(len(headings or lines[0]))
    head = "| " * len(columns) + "|" if headings is None else _line(headings)
    rule = _line(["---" if place in left else "---:" for place in columns])
    return "\n".join([head, rule, *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
