"""Plots are PNG files of a size fit for a repository; tables show every row, gaps included."""

import io
import math

import pytest
from rich.console import Console

from kava.report import plots
from kava.report.plots import accuracy_against_passes, loss_parts, style_of
from kava.report.terminal import NOT_TRAINED, quickstart_table
from kava.system.text import format_duration
from tools.picture import draw
from tools.readme import quickstart_markdown

PNG = b"\x89PNG\r\n\x1a\n"
LIMIT = 300_000


def row(method, accuracy, passes, seconds=61.0):
    return {
        "method": method,
        "accuracy": accuracy,
        "accuracy_se": 2.4,
        "n": 400,
        "forward_passes": passes,
        "ms_per_question": 2.5 * passes,
        "ms_per_question_in_batch": 0.5 * passes,
        "train_seconds": seconds,
    }


ROWS = [
    row("cot", 98.5, 38.25, None),
    row("no_cot", 31.25, 7.0, 59.6),
    row("pccot", 33.0, 10.0),
    row("kava", 55.5, 10.0, 3605.0),
]


def records(scale, **terms):
    """Sixty logged steps in which the named terms fall from their start."""
    return [
        {"step": step, **{k: v * scale * math.exp(-step / 300) for k, v in terms.items()}}
        for step in range(10, 610, 10)
    ]


def is_small_png(path, limit=LIMIT):
    data = path.read_bytes()
    return data.startswith(PNG) and 2_000 < len(data) <= limit


def render(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_accuracy_plot_is_written_into_a_new_folder(tmp_path):
    path = accuracy_against_passes(ROWS, tmp_path / "new" / "accuracy.png")
    assert is_small_png(path)


@pytest.mark.parametrize("rows", [[], ROWS[:1], [row("some_new_method", 0.0, 1.0)]])
def test_accuracy_plot_of_few_rows(tmp_path, rows):
    assert is_small_png(accuracy_against_passes(rows, tmp_path / "accuracy.png"))


def test_loss_plot_of_methods_with_different_terms(tmp_path):
    series = {
        "no_cot": records(1.0, loss=2, student_ce=2),
        "pccot": records(0.8, loss=3, student_ce=2, teacher_ce=0.1, codi=0.5),
        "kava": records(0.5, loss=4, student_ce=2, teacher_ce=0.1, codi=0.5, kv=0.4),
    }
    series["kava"].append({"step": 600, "validation_accuracy": 41.0})
    assert is_small_png(loss_parts(series, tmp_path / "loss.png"))


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [None, 1.0], [math.nan, math.inf], [-1.0, 2.0], [3.0], []]
)
def test_loss_plot_of_odd_values(tmp_path, values):
    series = {"kava": [{"step": i, "loss": value} for i, value in enumerate(values)]}
    assert is_small_png(loss_parts(series, tmp_path / "loss.png"))


def test_long_run_stays_small(tmp_path):
    many = [{"step": i, "loss": 2 + math.sin(i * i), "kv": 1 / (i + 1)} for i in range(20_000)]
    assert is_small_png(loss_parts({"kava": many, "pccot": many}, tmp_path / "loss.png"))


def test_methods_differ_by_colour_and_by_marker():
    found = [style_of(name) for name in plots._STYLES]
    assert len({one.colour for one in found}) == len(found)
    assert len({one.marker for one in found}) == len(found)
    new = style_of("some_new_method")
    assert new.label == "some_new_method" and new.marker not in {one.marker for one in found}


def test_terminal_table_shows_each_row_on_one_line_of_80_columns():
    text = render(quickstart_table(ROWS))
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "98.5 ± 2.4" in lines["CoT"] and NOT_TRAINED in lines["CoT"]
    assert "31.2 ± 2.4" in lines["No-CoT"] and "1 min 00 s" in lines["No-CoT"]
    assert "10.0" in lines["PCCoT"] and "1 min 01 s" in lines["PCCoT"]
    assert "55.5 ± 2.4" in lines["KaVa"] and "1 h 00 min" in lines["KaVa"]
    assert "n = 400" in text


def test_markdown_table_has_the_same_cells():
    lines = quickstart_markdown(ROWS).splitlines()
    assert [line.count("|") for line in lines[:6]] == [7] * 6
    assert lines[2] == f"| CoT | 98.5 ± 2.4 | 38.2 | 95.6 | 19.1 | {NOT_TRAINED} |"
    assert lines[5].startswith("| KaVa | 55.5 ± 2.4 | 10.0 | 25.0 | 5.0 |")
    assert "one standard error" in lines[7]


def test_tables_name_different_numbers_of_problems():
    assert "n = 300 or 400 held-out" in quickstart_markdown([*ROWS, {**ROWS[0], "n": 300}])


def test_several_seeds_show_their_deviation():
    seeds = {"seeds": [42, 123, 456], "accuracy_std": 7.25}
    rows = [{**ROWS[0], "seeds": []}, {**ROWS[3], **seeds}]
    text = quickstart_markdown(rows)
    assert "98.5 ± 2.4" in text and "55.5 ± 7.2" in text
    assert "deviation over 3 seeds, one standard error for a single run" in text
    assert "standard error" not in quickstart_markdown(rows[1:])
    assert "standard error" in quickstart_markdown([{**rows[1], "seeds": [42]}])


def test_tables_without_rows_or_times():
    assert "n = no" in quickstart_markdown([])
    assert "| - |" in quickstart_markdown([{**ROWS[0], "ms_per_question": None}])
    assert render(quickstart_table([]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3599.7, "1 h 00 min")],
)
def test_duration_carries_over(seconds, text):
    assert format_duration(seconds) == text


def test_picture_is_drawn_as_png_and_svg(tmp_path):
    assert is_small_png(draw(tmp_path / "kava.png"), 150_000)
    assert "<svg" in draw(tmp_path / "kava.svg").read_text(encoding="utf-8")


def test_a_title_is_not_wider_than_its_picture(tmp_path, monkeypatch):
    """Several seeds of one method and a single run of another need the longest words."""
    from matplotlib.figure import Figure

    wide = []

    def look_at(figure, *_, **__):
        figure.canvas.draw()
        for axes in figure.axes:
            box = axes.title.get_window_extent()
            wide.append(box.x0 >= 0 and box.x1 <= figure.bbox.x1)

    monkeypatch.setattr(Figure, "savefig", look_at)
    first, *others = ROWS
    mixed = [{**first, "seeds": [1, 2], "accuracy_std": 1.0}, *others]
    accuracy_against_passes(mixed, tmp_path / "accuracy.png")
    assert wide == [True]
