"""The command `kava table`: results as Markdown, CSV and LaTeX, next to published numbers."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.errors import KavaError
from kava.reasoning.methods import paper_of
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.report import published
from kava.report.plots import describe_spread, spread, style_of
from kava.report.results import Group, changes, check_column, seeds, setting
from kava.report.rows import TableRow
from kava.system import assets
from kava.system.files import write_whole
from kava.system.tables import markdown_table

GAP = "-"
#: Costs of one answer with the headings of their columns; see `report.rows`.
COSTS = {
    "forward_passes": "forward passes",
    "prefill_passes": "prefill passes",
    "generated_tokens": "generated tokens",
    "ms_per_question": "ms alone",
    "ms_per_question_in_batch": "ms in a batch",
    "tokens_per_second": "tokens/s in a batch",
}


@dataclass(frozen=True)
class MeasuredValue:
    """A value with its spread, the number after ±, if any.

    share: how many of the seeds count, if not all.
    gap: text shown if there is no value.
    """

    value: float | None
    spread: float | None = None
    share: str = ""
    gap: str = GAP

    def text(self, sign: str = "±") -> str:
        """Return text such as `93.2 ± 3.3`, followed by `(2/3)` if seeds are missing."""
        if self.value is None:
            return self.gap + self.share
        behind = "" if self.spread is None else f" {sign} {self.spread:.1f}"
        return f"{self.value:.1f}{behind}{self.share}"


Cell = str | MeasuredValue


@dataclass(frozen=True)
class Table:
    """A table that can be written in three formats.

    name: base name of the files.
    caption: what was measured, and what ± means.

    In CSV, a column of numbers becomes two columns: the value and its spread.
    """

    name: str
    caption: str
    headings: tuple[str, ...]
    rows: list[tuple[Cell, ...]]

    @property
    def numbers(self) -> list[bool]:
        """Whether each column holds measured values."""
        return [any(isinstance(row[i], MeasuredValue) for row in self.rows) for i in self._columns]

    def markdown(self) -> str:
        """Return a Markdown table with its caption below."""
        head, *lines = (
            [_escape_markdown(_text(c)) for c in r] for r in (self.headings, *self.rows)
        )
        left = [place for place, number in enumerate(self.numbers) if not number]
        return f"{markdown_table(head, lines, left)}\n\n{self.caption}\n"

    def csv(self) -> str:
        """Return comma-separated values, with unrounded numbers; a missing number is empty.

        A text that a spreadsheet would evaluate as a formula gets an apostrophe before it.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        head: list[str] = []
        for heading, number in zip(self.headings, self.numbers, strict=True):
            heading = _escape_formula(heading)
            head += [heading, f"{heading} ±"] if number else [heading]
        writer.writerow(head)
        for row in self.rows:
            line: list[Any] = []
            for cell, number in zip(row, self.numbers, strict=True):
                if number:
                    known = cell if isinstance(cell, MeasuredValue) else MeasuredValue(None)
                    line += [_csv_number(known.value), _csv_number(known.spread)]
                else:
                    line.append(_escape_formula(_text(cell)))
            writer.writerow(line)
        return out.getvalue()

    def latex(self) -> str:
        """Return a `tabular` with rules from booktabs, and the caption as a comment above."""
        columns = "".join("r" if number else "l" for number in self.numbers)
        lines = [
            [_escape_latex(h) for h in self.headings],
            *([_latex_cell(c) for c in r] for r in self.rows),
        ]
        head, *body = (" & ".join(line) + r" \\" for line in lines)
        comment = "\n".join(f"% {line}" for line in self.caption.splitlines())
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        return "\n".join(
            [comment, begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end, ""]
        )

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.md, NAME.csv and NAME.tex into a folder; return their paths."""
        forms = {".md": self.markdown(), ".csv": self.csv(), ".tex": self.latex()}
        files = [folder / f"{self.name}{ending}" for ending in forms]
        for file, text in zip(files, forms.values(), strict=True):
            write_whole(file, text)
        return files

    @property
    def _columns(self) -> range:
        return range(len(self.headings))


def results_table(groups: Sequence[Group], tasks: Sequence[str] = ()) -> Table:
    """Return a row per recipe: the accuracy on each task, and the cost of the first task's answers.

    Args:
        tasks: the tasks to show; if empty, all tasks that any run was scored on.

    Raises:
        KavaError: no run was scored on a task, or two runs were not scored alike.
    """
    known = list(dict.fromkeys(task for group in groups for task in group.tasks))
    tasks = list(tasks) or known
    if not tasks:
        raise KavaError(
            "table: none of the runs has been scored yet; use kava eval RUN --task ...",
            code="report.nothing-scored",
        )
    for task in tasks:
        if task not in known:
            raise KavaError(
                f"table: no run was scored on '{task}'; scored: {', '.join(known)}",
                code="report.task-not-scored",
                key=task,
            )
    all_seeds = seeds(groups)
    by_group = [[group.row(task, all_seeds) for task in tasks] for group in groups]
    for task in tasks:
        check_column(groups, task)
    order = sorted(range(len(groups)), key=lambda i: -(by_group[i][0]["accuracy"] or -1))
    rows = []
    for i in order:
        found, first = by_group[i], by_group[i][0]
        size = first["peak_memory_bytes"]
        rows.append(
            (
                group_label(groups[i]),
                *(accuracy(row) for row in found),
                *(MeasuredValue(first[cost]) for cost in COSTS),
                MeasuredValue(None if size is None else size / 1e6),
            )
        )
    headings = ("method", *(f"{task} (%)" for task in tasks), *COSTS.values(), "peak memory (MB)")
    flat = [row for found in by_group for row in found]
    cost = f"; costs on {tasks[0]}" if len(tasks) > 1 else ""
    return Table("results", caption(flat) + cost, headings, rows)


def paper_tables(groups: Sequence[Group]) -> list[Table]:
    """Return KaVa's Table 1 (accuracy) and Table 2 (forward passes), with our and published values.

    Every setting and method has a row, whether it was run or not. A run whose recipe differs from
    the shipped one has its own row, named by the keys that differ, without a published value.

    Raises:
        KavaError: two runs were not scored alike, or one recipe has several names.
    """
    placed = [(setting(group), group) for group in groups]
    left = [group.name for where, group in placed if where is None]
    note = f"; not of the paper's settings and left out: {', '.join(left)}" if left else ""
    return [
        _paper_table("accuracy", "table1_accuracy", placed, note),
        _paper_table("forward_passes", "table2_forward_passes", placed, note),
    ]


def _paper_table(
    quantity: str, name: str, placed: Sequence[tuple[str | None, Group]], note: str
) -> Table:
    counted = [group for where, group in placed if where]
    tasks = list(dict.fromkeys(["gsm8k", *(task for group in counted for task in group.tasks)]))
    rows: list[tuple[Cell, ...]] = []
    shown: list[TableRow] = []
    for where in published.settings():
        groups = [group for at, group in placed if at == where]
        for task in tasks:
            rows += _paper_rows(quantity, where, task, groups, seeds(counted), shown)
    for task in tasks:
        check_column(counted, task)
    title = {"accuracy": "Accuracy (%)", "forward_passes": "Forward passes per answer"}[quantity]
    measured = caption(shown) if any(row["n"] for row in shown) else "no run of ours yet"
    table_caption = (
        f"{title}; ours: {measured}; published: by others, second-hand; - where there is none{note}"
    )
    headings = ("setting", "task", "method", "ours", "published", "difference", "source")
    return Table(name, table_caption, headings, rows)


def _by_paper() -> list[str]:
    """Return all methods: first those without a paper, then in the order of their papers."""
    return sorted(registry.names("methods"), key=lambda name: (paper_of(name) or "", name))


def _paper_rows(
    quantity: str,
    where: str,
    task: str,
    groups: Sequence[Group],
    all_seeds: Sequence[int],
    shown: list[TableRow],
) -> Iterable[tuple[Cell, ...]]:
    for method in _by_paper():
        # A method of this project, or one that a user has added, has no recipe of the paper.
        folder = assets.folder_with(f"recipes/{where}", f"{method}.yaml")
        shipped = load_resolved(folder / f"{method}.yaml") if folder else None
        own = [group for group in groups if group.method == method]
        different = {id(group): changes(group, shipped) if shipped else {} for group in own}
        plain = [group for group in own if not different[id(group)]]
        other = published.number(quantity, task, where, method)
        if plain or other or (shipped and task == "gsm8k"):
            yield _paper_row(quantity, where, task, method, plain, other, all_seeds, shown)
        for group in own:
            if different[id(group)]:
                keys = ", ".join(f"{k}={v}" for k, v in different[id(group)].items())
                label = f"{method} with {keys}"
                yield _paper_row(quantity, where, task, label, [group], None, all_seeds, shown)


def _paper_row(
    quantity: str,
    where: str,
    task: str,
    name: str,
    groups: Sequence[Group],
    other: published.Number | None,
    all_seeds: Sequence[int],
    shown: list[TableRow],
) -> tuple[Cell, ...]:
    if len(groups) > 1:
        folders = ", ".join(str(next(iter(group.runs.values()))) for group in groups)
        raise KavaError(
            f"table: {where} {name}: the same recipe under several names ({folders})",
            code="report.several-names",
            key=name,
        )
    ours = MeasuredValue(None, gap="not run")
    if groups:
        row = groups[0].row(task, all_seeds)
        shown.append(row)
        ours = accuracy(row) if quantity == "accuracy" else MeasuredValue(row[quantity])
    both = ours.value is not None and other is not None
    return (
        where,
        task,
        style_of(name).label,
        ours,
        MeasuredValue(other.value if other else None),
        MeasuredValue(ours.value - other.value if both else None),
        other.citation if other else GAP,
    )


def accuracy(row: TableRow) -> MeasuredValue:
    """Return a row's accuracy with its spread."""
    counted, missing = row.get("seeds") or (), row.get("missing_seeds") or ()
    share = f" ({len(counted)}/{len(counted) + len(missing)})" if missing else ""
    return MeasuredValue(
        row["accuracy"], spread(row) if row["accuracy"] is not None else None, share
    )


def group_label(group: Group) -> str:
    """Return the method's name in print, or the run's own name if that is different."""
    return style_of(group.method).label if group.name == group.method else group.name


def caption(rows: Sequence[TableRow], subject: str = "") -> str:
    """Return a table's caption: the number of problems, and what ± means.

    Args:
        subject: what the problems are, such as ` held-out problems`.
    """
    counts = sorted({row["n"] for row in rows if row["n"] is not None})
    words = " or ".join(f"{n:,}" for n in counts) or "no"
    share = "; (k/m): only k of m seeds" if any(row.get("missing_seeds") for row in rows) else ""
    return f"n = {words}{subject}; ± is {describe_spread(rows)}{share}"


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text()


def _escape_markdown(text: str) -> str:
    """Return a text on one line, escaped for a cell of a Markdown table."""
    return " ".join(text.splitlines()).replace("|", "\\|")


def _escape_formula(text: str) -> str:
    """Return a text on one line that a spreadsheet does not evaluate as a formula."""
    line = " ".join(text.splitlines())
    begins = line.lstrip(" ")[:1] in ("=", "+", "-", "@", "\t")
    return f"'{line}" if begins and line != GAP else line


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}"


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in " ".join(text.splitlines()))


def _latex_cell(cell: Cell) -> str:
    return _escape_latex(cell) if isinstance(cell, str) else cell.text(r"$\pm$")
