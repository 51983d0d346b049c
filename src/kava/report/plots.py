"""Plots of results: accuracy and cost, training curves, and the effect of M, T and steps.

The colours are those of Okabe and Ito, which can be told apart with colour-blindness. Each method
also has its own marker and dash pattern, for print in grey. matplotlib is imported only when a plot
is drawn.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kava.reasoning.methods import label_of
from kava.report.rows import TableRow
from kava.system.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float, float | None]


class Dot(NamedTuple):
    """A value with its interval, and the label of the line it is drawn on."""

    label: str
    value: float
    low: float
    high: float


class Style(NamedTuple):
    """How a method is drawn: its label, colour, marker and dashes are the same in every plot."""

    label: str
    colour: str
    marker: str
    dashes: str


#: Colour, marker and dashes of kava's own methods; any other method is drawn grey.
_STYLES = {
    "cot": ("#000000", "s", "-"),
    "no_cot": ("#E69F00", "v", "--"),
    "pccot": ("#0072B2", "o", "-."),
    "kava": ("#D55E00", "D", "-"),
    "codi": ("#009E73", "^", ":"),
    "coconut": ("#56B4E9", "P", "--"),
    "icot": ("#CC79A7", "X", "-."),
    "lotus": ("#6B6B6B", "p", ":"),
}
_GREY_STYLE = ("#6B6B6B", "*", ":")
PANELS = {
    "loss": "Whole loss",
    "student_ce": "CE, student",
    "teacher_ce": "CE, teacher",
    "codi": "L_CODI",
    "kv": "L_KV",
    "readout": "CE, latents read out",
    "validation_accuracy": "Validation accuracy (%)",
}
_INK, _GREY = "#1A1A1A", "#4A4A4A"
_DPI = 150


def style_of(method: str) -> Style:
    """Return the look of a method; a method without a colour of its own is drawn grey."""
    return Style(label_of(method), *_STYLES.get(method, _GREY_STYLE))


#: For names other than methods: dark enough for print, and distinct from the methods' hues.
_MORE = ("#5E3C99", "#8C510A", "#01665E", "#A50F15", "#737300")


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    """Return a look for each name: a method's own, or one from a further set for other names."""
    markers, dashes = "*hd<>1234", ("-", "--", "-.", ":")
    found = {name: style_of(name) for name in names if name in _STYLES}
    for place, name in enumerate(name for name in dict.fromkeys(names) if name not in _STYLES):
        colour = _MORE[place % len(_MORE)]
        style = markers[place % len(markers)], dashes[place % len(dashes)]
        found[name] = Style(name, colour, *style)
    return found


def label(row: TableRow) -> str:
    """Return the label of a row: its method's label, or its own name if that is different."""
    name = row.get("name", row["method"])
    return style_of(row["method"]).label if name == row["method"] else name


def spread(row: TableRow) -> float:
    """Return the value after ±: the standard deviation over seeds if there are several.

    For a single seed it is the standard error.
    """
    return row["accuracy_std"] if len(row.get("seeds") or ()) > 1 else row["accuracy_se"]


def describe_spread(rows: Sequence[TableRow]) -> str:
    """Describe what ± means in these rows; rows without an accuracy are ignored."""
    counts = {len(row.get("seeds") or ()) for row in rows if row["accuracy"] is not None}
    many = max(counts, default=0)
    if many < 2:
        return "one standard error"
    words = f"standard deviation over {many} seeds"
    return words if min(counts) > 1 else f"{words}, one standard error for a single run"


def accuracy_against_passes(rows: Sequence[TableRow], path: str | Path) -> Path:
    """Draw accuracy against forward passes, one point with an error bar per method.

    Args:
        rows: each with `method`, `accuracy` and `accuracy_se` in percent, `forward_passes`, `n`;
            with more than one of `seeds`, also `accuracy_std`, which is then the error bar.
        path: the PNG file to write.
    """
    figure = _figure((7.4, 4.2))
    axes = figure.add_subplot()
    _tidy(axes)
    passes = [row["forward_passes"] for row in rows]
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.5 * min(passes, default=1), 1.9 * max(passes, default=1))
    _plain_powers(axes)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("Forward passes between question and end of answer (log scale)")
    axes.set_ylabel("Accuracy (%)")
    counts = sorted({row["n"] for row in rows})
    problems = " or ".join(f"{n:,}" for n in counts)
    words = f"{problems} problems, ± {describe_spread(rows)}"
    _title(axes, f"Accuracy and cost of an answer\n{words}")
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        _point(axes, row)
    if rows:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _save(figure, path)


def dots(
    series: dict[str, Sequence[Dot]],
    path: str | Path,
    across: str,
    title: str,
    level: float,
    level_label: str,
) -> Path:
    """Draw percentages as dots with intervals, one line per label.

    Args:
        series: for each quantity, its dots; the first one defines all lines, from top to bottom.
        path: the PNG file to write.
        across: label of the x axis.
        title: title above the axes.
        level: a value to compare with, drawn as a dashed line with the label `level_label`.
    """
    lines = {dot.label: -place for place, dot in enumerate(next(iter(series.values())))}
    figure = _figure((7.0, 1.7 + 0.32 * len(lines)))
    axes = figure.add_subplot()
    _tidy(axes)
    axes.axvline(level, color=_GREY, linestyle="--", linewidth=1.2, label=level_label)
    for name, style in zip(series, (style_of("kava"), style_of("pccot")), strict=False):
        _dots(axes, series[name], lines, name, style)
    axes.set_yticks(list(lines.values()), list(lines))
    axes.set_xlim(-2, 102)
    axes.set_xlabel(across)
    _title(axes, title)
    figure.legend(loc="outside lower center", ncols=len(series) + 1, frameon=False, fontsize=9)
    return _save(figure, path)


def _dots(axes: Axes, dots: Sequence[Dot], lines: dict[str, int], name: str, look: Style) -> None:
    axes.errorbar(
        [dot.value for dot in dots],
        [lines[dot.label] for dot in dots],
        xerr=[[dot.value - dot.low for dot in dots], [dot.high - dot.value for dot in dots]],
        label=name,
        color=look.colour,
        marker=look.marker,
        markersize=7,
        linestyle="none",
        capsize=3,
        elinewidth=1.4,
        zorder=3,
    )


def loss_parts(series: dict[str, Sequence[dict[str, Any]]], path: str | Path) -> Path:
    """Draw every loss term over training steps, a panel per term and a line per method.

    Args:
        series: method, or another name, to the records of its `metrics.jsonl`; a record has `step`
            and those terms of `PANELS` that were logged at that step. Terms without records get no
            panel.
        path: the PNG file to write.
    """
    styles = styles_of(list(series))
    terms = [term for term in PANELS if any(_points(s, term)[0] for s in series.values())]
    columns = min(3, max(1, len(terms)))
    lines = max(1, math.ceil(len(terms) / columns))
    figure = _figure((3.1 * columns + 0.4, 2.35 * lines + 0.5))
    for place, term in enumerate(terms):
        axes = figure.add_subplot(lines, columns, place + 1)
        _panel(axes, series, styles, term)
        if place + columns >= len(terms):
            axes.set_xlabel("Step")
    _legend(figure, list(styles.values()))
    return _save(figure, path)


def lines(
    series: Mapping[str, Sequence[Point]],
    path: str | Path,
    across: str,
    title: str,
    whole: bool = True,
) -> Path:
    """Draw accuracy against a number, one line with error bars per name.

    Args:
        series: name to points (x, accuracy in percent, its spread or None), in any order.
        path: the PNG file to write.
        across: label of the x axis.
        title: title above the axes.
        whole: whether x takes only these values; each then gets a tick.
    """
    figure = _figure((6.4, 3.9))
    axes = figure.add_subplot()
    _tidy(axes)
    styles = styles_of(list(series))
    for name, points in series.items():
        xs, ys, spreads = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        bars = [value or 0.0 for value in spreads] if any(spreads) else None
        style = styles[name]
        axes.errorbar(
            xs, ys, yerr=bars, label=style.label, color=style.colour, marker=style.marker,
            linestyle=style.dashes, markersize=6, capsize=3, linewidth=1.5, elinewidth=1.2,
        )  # fmt: skip
    if whole:
        axes.set_xticks(sorted({point[0] for points in series.values() for point in points}))
    axes.set_ylim(0, 104)
    axes.set_xlabel(across)
    axes.set_ylabel("Accuracy (%)")
    _title(axes, title)
    if len(series) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    return _save(figure, path)


def _point(axes: Axes, row: TableRow) -> None:
    """Draw a marker with its error bar; it is hollow for a variant of a method."""
    _, colour, marker, _ = style_of(row["method"])
    plain = row.get("name", row["method"]) == row["method"]
    axes.errorbar(
        row["forward_passes"],
        row["accuracy"],
        yerr=spread(row),
        label=f"{label(row)}  {row['accuracy']:.1f} ± {spread(row):.1f}",
        color=colour,
        marker=marker,
        markersize=9 if plain else 8,
        markeredgecolor="white" if plain else colour,
        markerfacecolor=colour if plain else "white",
        linestyle="none",
        capsize=4,
        elinewidth=1.4,
        zorder=3,
    )


def _panel(
    axes: Axes, series: dict[str, Sequence[dict[str, Any]]], styles: dict[str, Style], term: str
) -> None:
    _tidy(axes)
    _title(axes, PANELS[term])
    lowest = math.inf
    for method, records in series.items():
        steps, values = _points(records, term)
        if not steps:
            continue
        lowest = min(lowest, *values)
        _, colour, marker, dashes = styles[method]
        every = max(1, len(steps) // 6)
        axes.plot(
            steps,
            values,
            color=colour,
            linestyle=dashes,
            linewidth=1.5,
            marker=marker,
            markersize=4,
            markevery=every,
        )
    if term == "validation_accuracy":
        axes.set_ylim(0, 104)
    elif lowest > 0:
        axes.set_yscale("log")
        _plain_logs(axes)


def _points(records: Sequence[dict[str, Any]], term: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a term was logged as a finite number, and its values."""
    kept = [(r["step"], r[term]) for r in records if r.get(term) is not None]
    kept = [(step, value) for step, value in kept if math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def _plain_powers(axes: Axes) -> None:
    """Label the ticks of the x axis as 2, 4, 8, ... instead of as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _plain_logs(axes: Axes) -> None:
    """Label a few ticks of a logarithmic y axis with plain numbers.

    On a long axis, only powers of ten are labelled.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high / low < 1000 else (1,)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, styles: list[Style]) -> None:
    """Draw one legend below all panels, since a method may be missing from the first panel."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=one.colour, marker=one.marker, linestyle=one.dashes) for one in styles
    ]
    labels = [one.label for one in styles]
    place = "outside lower center"
    figure.legend(handles, labels, loc=place, ncols=max(1, min(5, len(labels))), frameon=False)


def _figure(size: tuple[float, float]) -> Figure:
    """Return a figure on the Agg canvas, which works with any display or backend of the caller."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GREY, labelsize=9)


def _title(axes: Axes, text: str) -> None:
    folded = "\n".join(textwrap.fill(line, 66) for line in text.splitlines())
    axes.set_title(folded, fontsize=10.5, color=_INK)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    image = BytesIO()
    figure.savefig(image, format="png", dpi=_DPI)
    write_whole(path, image.getvalue())
    return path
