"""The README's picture of the method: `python -m tools.picture docs/kava.png`.

Drawn in units of a 106 x 54 grid, x to the right, y up. What a reader should see: teacher and
student share a question and differ in how they get from it to the answer, and the only way
from the teacher's steps to the student's latents is a cache from which most tokens are gone.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from kava.system.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 106, 54
INK, SOFT, PAPER = "#1F2933", "#66727F", "#FCFCFA"
# Fill and edge of each kind of token; Okabe-Ito hues, lightened for text on top.
QUESTION = ("#E4E9EE", "#8593A1")
STEPS = ("#D5E8F5", "#0072B2")
LATENTS = ("#FBE0CF", "#D55E00")
ANSWER = ("#D3EFE6", "#009E73")
SPECIAL = ("#FFFFFF", "#8593A1")

TEACHER_Y, CACHE_Y, SLOTS_Y, STUDENT_Y, BOX = 43.5, 32.0, 21.5, 9.0, 5.2
STEPS_X, SLOTS_X, ANSWER_X, CELL, SLOT = 37.0, 44.4, 76.8, 1.9, 2.9
COLUMNS, LATENT_COUNT = 20, 8
# Which columns survive, per row: each layer and head chooses for itself.
KEPT = (
    (1, 3, 4, 7, 9, 12, 16, 18),
    (0, 3, 5, 8, 9, 13, 14, 19),
    (2, 4, 6, 7, 11, 13, 17, 18),
)


def draw(path: str | Path) -> Path:
    """Draw the picture; the ending of `path` (.png, .svg) chooses the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10), facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    _teacher(axes)
    _cache(axes)
    _student(axes)
    _losses(axes)
    _note(axes, 2, (TEACHER_Y + STUDENT_Y + BOX) / 2, "one model,\nthe same weights", "left")
    path = Path(path)
    image = BytesIO()
    figure.savefig(image, format=path.suffix[1:] or "png", dpi=150, facecolor=PAPER)
    write_whole(path, image.getvalue())
    return path


def _teacher(axes: Axes) -> None:
    _name(axes, TEACHER_Y, "Teacher", "writes its steps")
    _question(axes, TEACHER_Y)
    for place, step in enumerate(("<<4+3=7>>", "<<9-7=2>>")):
        _box(axes, STEPS_X + 19.2 * place, TEACHER_Y, 18.8, step, STEPS, mono=True)
    _answer(axes, TEACHER_Y)


def _cache(axes: Axes) -> None:
    """The cache of the steps, its chosen cells, and the slots they move to."""
    for row, kept in enumerate(KEPT):
        for column in range(COLUMNS):
            at = STEPS_X + column * CELL + 0.1, CACHE_Y + row * CELL
            _cell(axes, at, CELL, STEPS, strong=column in kept)
        for slot in range(LATENT_COUNT):
            _cell(axes, (SLOTS_X + slot * SLOT, SLOTS_Y + row * CELL), SLOT, STEPS, strong=True)
    middle, top = STEPS_X + 19, CACHE_Y + 3 * CELL
    _arrow(axes, (middle, TEACHER_Y - 0.4), (middle, top + 0.4), SOFT)
    _arrow(axes, (middle, CACHE_Y - 0.5), (middle, SLOTS_Y + 3 * CELL + 0.4), SOFT)
    left = STEPS_X - 1.5
    _note(axes, left, CACHE_Y + 1.5 * CELL, "its KV cache, a row\nper layer and head", "right")
    _note(axes, left, SLOTS_Y + 1.5 * CELL, "M slots, chosen by\nimportance and novelty", "right")
    _note(axes, middle + 1.2, (CACHE_Y + SLOTS_Y + 3 * CELL) / 2, "compress", "left")


def _student(axes: Axes) -> None:
    _name(axes, STUDENT_Y, "Student", "thinks in latents;\nruns alone afterwards")
    _question(axes, STUDENT_Y)
    _box(axes, STEPS_X, STUDENT_Y, 7, "<bot>", SPECIAL, mono=True)
    for place in range(LATENT_COUNT):
        text = {0: "$z_1$", 1: "$z_2$", LATENT_COUNT - 1: "$z_M$"}.get(place, "·")
        _box(axes, SLOTS_X + place * SLOT, STUDENT_Y, SLOT - 0.3, text, LATENTS)
    _box(axes, SLOTS_X + LATENT_COUNT * SLOT + 0.1, STUDENT_Y, 7, "<eot>", SPECIAL, mono=True)
    _answer(axes, STUDENT_Y)
    right, left = SLOTS_X + (LATENT_COUNT - 0.6) * SLOT, SLOTS_X + 0.4 * SLOT
    _arrow(axes, (right, STUDENT_Y - 0.3), (left, STUDENT_Y - 0.3), LATENTS[1], bend=-0.16)
    middle = (left + right) / 2
    _note(axes, middle, 4.6, "all at once, refined T times", "center", LATENTS[1])


def _losses(axes: Axes) -> None:
    """What is matched, arrows from target to learner: the teacher gets no gradient from them."""
    middle = SLOTS_X + LATENT_COUNT * SLOT / 2
    _arrow(axes, (middle, SLOTS_Y - 0.5), (middle, STUDENT_Y + BOX + 0.4), LATENTS[1])
    _pill(axes, middle, (SLOTS_Y + STUDENT_Y + BOX) / 2, "$L_{\\mathrm{KV}}$", LATENTS[1])
    colon, end = ANSWER_X + 17, ANSWER_X + 25.8
    ends = (colon, TEACHER_Y - 0.5), (colon, STUDENT_Y + BOX + 0.5)
    _arrow(axes, *ends, ANSWER[1])
    _pill(axes, colon, SLOTS_Y + 7.2, "$L_{\\mathrm{CODI}}$", ANSWER[1])
    _note(axes, colon - 5, SLOTS_Y + 7.2, "state at the colon,\nin every layer", "right")
    _note(axes, middle + 3.6, (SLOTS_Y + STUDENT_Y + BOX) / 2, "keys and values", "left")
    _bracket(axes, STEPS_X, end, TEACHER_Y + BOX + 0.9, 1, "CE: steps and answer")
    _bracket(axes, ANSWER_X, end, STUDENT_Y - 0.9, -1, "CE: answer")


def _name(axes: Axes, y: float, name: str, does: str) -> None:
    axes.text(2, y + 3.5, name, size=14, weight="bold", color=INK, va="center")
    axes.text(2, y + 1.9, does, size=9.5, color=SOFT, va="top", linespacing=1.35)


def _question(axes: Axes, y: float) -> None:
    _box(axes, 18, y, 17.5, "question", QUESTION)


def _answer(axes: Axes, y: float) -> None:
    _box(axes, ANSWER_X, y, 15.2, "The answer is", ANSWER)
    _box(axes, ANSWER_X + 15.5, y, 3, ":", ANSWER)
    _box(axes, ANSWER_X + 18.8, y, 7, "2", ANSWER, bold=True)


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    text: str,
    colours: tuple[str, str],
    mono: bool = False,
    bold: bool = False,
) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge = colours
    style = "round,pad=0,rounding_size=0.7"
    axes.add_patch(
        FancyBboxPatch((x, y), width, BOX, boxstyle=style, facecolor=fill, edgecolor=edge, lw=1.2)
    )
    axes.text(
        x + width / 2,
        y + BOX / 2,
        text,
        size=11 if not mono else 10.5,
        family="monospace" if mono else "sans-serif",
        weight="bold" if bold else "normal",
        color=INK,
        ha="center",
        va="center",
    )


def _cell(
    axes: Axes, at: tuple[float, float], width: float, colours: tuple[str, str], strong: bool
) -> None:
    from matplotlib.patches import Rectangle

    fill = colours[1] if strong else "#E3E9EE"
    axes.add_patch(
        Rectangle(at, width - 0.3, CELL - 0.3, facecolor=fill, edgecolor="none", linewidth=0)
    )


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    bend: float = 0.0,
) -> None:
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            connectionstyle=f"arc3,rad={bend}",
            mutation_scale=12,
            linewidth=1.5,
            color=colour,
            shrinkA=0,
            shrinkB=0,
        )
    )


def _bracket(axes: Axes, left: float, right: float, y: float, side: int, text: str) -> None:
    """A bracket over (`side` 1) or under (-1) the words that a cross entropy is taken on."""
    xs, ys = [left, left, right, right], [y, y + 0.8 * side, y + 0.8 * side, y]
    axes.plot(xs, ys, color=SOFT, linewidth=1.2)
    _note(axes, (left + right) / 2, y + 2.3 * side, text, "center")


def _note(axes: Axes, x: float, y: float, text: str, ha: str, colour: str = SOFT) -> None:
    axes.text(x, y, text, size=9.5, color=colour, ha=ha, va="center", linespacing=1.35)


def _pill(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    box = {"boxstyle": "round,pad=0.35", "facecolor": PAPER, "edgecolor": colour, "linewidth": 1.2}
    axes.text(x, y, text, size=13, color=INK, ha="center", va="center", bbox=box)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.picture FILE.png")
    print(draw(sys.argv[1]))
