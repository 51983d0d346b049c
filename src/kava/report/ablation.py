"""Table and plot for the command `kava ablate`."""

from pathlib import Path
from typing import Any

from rich.table import Table

from kava.evaluation.slices import NECESSARY, SELECTIVE, SUFFICIENT
from kava.report.plots import Dot, dots, style_of
from kava.system.tables import terminal_table

MEANINGS = {
    "mean": "mean over all questions",
    "noise": "noise of the same norm",
    "shuffled": "shuffled in order",
    "swapped": "swapped with another question's",
}


def label(name: str) -> str:
    """Return a row's label: what was done to the latents, or the number of iterations."""
    kind, _, count = name.rpartition("_")
    return f"T = {count}" if kind == "iterations" else name.replace("_", " ")


def ablation_table(table: dict[str, Any]) -> Table:
    """Return the contents of `ablation.json` as a table for a rich console."""
    headings = ("latents", "accuracy (%)", "difference", "95 %", "p", "passes")
    return terminal_table(headings, list(map(_cells, table["rows"])), caption=caption(table))


def slices_table(table: dict[str, Any]) -> Table:
    """Return sufficiency, selectivity and necessity of each slice as a table."""
    from rich import box
    from rich.table import Table

    asks = f">= {SUFFICIENT:.2f}", f"<= {SELECTIVE:.2f}", f">= {NECESSARY:.2f}"
    first = table["slices"][0]
    note = (
        f"shares of {first['n']:,} questions whose answer is not their partner's, and of "
        f"{first['n_right']:,} answered correctly; asked: {', '.join(asks)} (arXiv:2608.27265)"
    )
    shown = Table(caption=note, box=box.SIMPLE_HEAD, show_edge=False)
    shown.add_column("slice")
    for heading in ("sufficiency", "selectivity", "necessity", "passes"):
        shown.add_column(heading, justify="right")
    for row in table["slices"]:
        shares = (row[name] for name in ("sufficiency", "selectivity", "necessity"))
        cells = ("" if share is None else f"{share:.2f}" for share in shares)
        shown.add_row(label(row["name"]), *cells, "yes" if row["passes"] else "no")
    return shown


def caption(table: dict[str, Any]) -> str:
    """Return the table's caption: what was measured, and the chance levels to compare with."""
    rows = {row["name"]: row for row in table["rows"]}
    chance, swapped = table["chance"], rows["swapped"]
    return (
        f"n = {swapped['n']:,} of {table['task']}; ± is one standard error; differences to the "
        "first row in percent points (paired bootstrap; p: McNemar)\n"
        f"by chance: {chance['other_question']:.1f} % with another question's answer, "
        f"{chance['most_frequent']:.1f} % with the most frequent one\n"
        f"swapped with another question's: {swapped['partner_accuracy']:.1f} % of the answers are "
        "right for that question"
        + "".join(f"\nno row '{name}': {why}" for name, why in table["left_out"].items())
        + (f"\n{table['note']}" if table.get("note") else "")
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    first = f"{row['accuracy']:.1f} ± {row['accuracy_se']:.1f}"
    passes = f"{row['forward_passes']:.1f}"
    if row["name"] == "as_they_are":
        return label(row["name"]), first, "", "", "", passes
    low, high = row["difference_interval"]
    return (
        label(row["name"]),
        first,
        f"{row['difference']:+.1f}",
        f"{low:+.1f} to {high:+.1f}",
        f"{row['mcnemar_p']:.2g}" if row["mcnemar_p"] >= 1e-4 else "<0.0001",
        passes,
    )


def draw(table: dict[str, Any], path: Path) -> Path:
    """Draw a dot with its 95 % interval per row, and the share that answers the other question.

    The other question is the one whose latents were swapped in. Slices have a table of their own.
    """

    def label_of_slice(name: str) -> str:
        return MEANINGS.get(name, label(name))

    found = [
        Dot(label_of_slice(row["name"]), row["accuracy"], *row["accuracy_interval"])
        for row in table["rows"]
        if not row["name"].startswith(("swapped_", "mean_"))
    ]
    swapped = next(row for row in table["rows"] if row["name"] == "swapped")
    partner = Dot(
        label_of_slice("swapped"),
        swapped["partner_accuracy"],
        *swapped["partner_accuracy_interval"],
    )
    method, n = style_of(table["method"]).label, swapped["n"]
    return dots(
        {"the question's answer": found, "the other question's answer": [partner]},
        path,
        across="Share of answers (%), with 95 % intervals",
        title=f"Does it think? {method}'s latents changed before the answer\n"
        f"{table['task']}, {n:,} problems",
        level=table["chance"]["other_question"],
        level_label="chance",
    )
