"""Fill the README's tables from result files: `python -m kava.report.readme README.md`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; nobody types a number.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from kava.report.tables import markdown_table


def tables(root: Path) -> dict[str, str]:
    """Every table of the README by name, from the committed results below `root`."""
    quickstart = json.loads((root / "results/quickstart/summary.json").read_text(encoding="utf-8"))
    best_first = sorted(quickstart["rows"], key=lambda row: -row["accuracy"])
    return {"quickstart": markdown_table(best_first)}


def filled(text: str, root: Path) -> str:
    """The README with every table put in anew.

    Raises:
        ValueError: a table has no place in the text.
    """
    for name, table in tables(root).items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"no place for the table '{name}'")
        text = place.sub(lambda m, table=table: f"{m[1]}\n{table}\n{m[2]}", text)
    return text


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(
        filled(file.read_text(encoding="utf-8"), file.resolve().parent), encoding="utf-8"
    )
