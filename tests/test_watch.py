"""A training can be watched from its folder alone, at any moment of its life."""

import io
import json
import os
import time
from pathlib import Path

import pytest
import torch
from refusals import refused
from rich.console import Console

from kava.runs import watch
from kava.system.memory import peak_memory

RECIPE = """
method: kava
backbone: tiny
data: {train: synthetic, train_rows: 100}
train: {LENGTH, learning_rate: 1e-3}
"""


@pytest.fixture
def run(tmp_path):
    """Forty of a hundred steps."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("LENGTH", "steps: 100"), "utf-8")
    write(tmp_path, range(10, 50, 10))
    return tmp_path


def write(run, steps, end=""):
    rows = [
        {
            "step": s,
            "loss": 100.0 / s**2,
            "kv": 0.5 - s / 1000,
            "epoch": s / 50,
            "seconds_per_step": 2.0,
        }
        for s in steps
    ]
    rows.append({"step": steps[-1], "validation_accuracy": 41.0, "validation_n": 300})
    text = "".join(json.dumps(row) + "\n" for row in rows) + end
    (run / "metrics.jsonl").write_text(text, "utf-8")


def shown(run, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    watch.watch(run, console)
    return console.export_text()


def test_what_is_shown(run):
    text = shown(run)
    head, rows = text.splitlines()[0], text.splitlines()[3:]
    assert head.endswith("step 40 of 100, about 2 min 00 s left")
    by = {row.split("  ")[0].strip(): row.split() for row in rows if row.strip()}
    assert by["kv"][1:4] == ["0.46", "0.46", "0.49"] and by["kv"][4] == "█▆▃▁"
    assert by["loss"][1] == "0.0625" and by["validation_accuracy"][1] == "41"
    assert "validation_n" not in text and list(by)[:2] == ["loss", "kv"]


def test_the_first_step_says_nothing_of_the_pace_where_others_do(run):
    first = {"step": 1, "loss": 100.0, "seconds_per_step": 90.0}
    (run / "metrics.jsonl").write_text(json.dumps(first) + "\n", "utf-8")
    assert watch.seconds_left(watch.read_state(run)) == 99 * 90.0
    write(run, [1, 10])
    rows = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(first), *rows[1:]]), "utf-8")
    assert watch.seconds_left(watch.read_state(run)) == 90 * 2.0


def test_a_line_that_is_being_written_waits(run):
    write(run, range(10, 50, 10), end='{"step": 50, "lo')
    assert "step 40 of 100" in shown(run)
    whole = (run / "metrics.jsonl").read_text("utf-8")
    (run / "metrics.jsonl").write_text(whole + "\n" + whole, "utf-8")
    with refused("runs.not-a-log", str(run / "metrics.jsonl")) as told:
        watch.read_state(run)
    assert "line 6:" in str(told.value)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"5", "runs.no-step"),
        (b'["step"]', "runs.no-step"),
        (b'{"loss": 1.0}', "runs.no-step"),
        (b'{"step": "4"}', "runs.no-step"),
        (b'{"step": NaN}', "runs.no-step"),
        (b'{"step": 1e400}', "runs.no-step"),
        (b'{"step": null}', "runs.no-step"),
        (b'{"step": 4, "loss": "\xff"}', "runs.not-a-log"),
        (b"[" * 100_000, "runs.not-a-log"),
    ],
)
def test_a_line_that_no_training_writes_is_named(run, line, code):
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with refused(code, str(run / "metrics.jsonl")) as told:
        shown(run)
    assert "line 2:" in str(told.value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_loss_that_ran_away_is_not_drawn(run, value):
    """json writes and reads these words; `kava watch` is how one sees such a run."""
    rows = [f'{{"step": {s}, "loss": {v}, "seconds_per_step": {v}, "epoch": {v}, "kv": {v}}}\n'
            for s, v in ((10, "2.0"), (20, value), (30, "1.0"), (40, value))]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(rows), "utf-8")
    (run / "recipe.yaml").write_text(RECIPE.replace("LENGTH", "epochs: 3"), "utf-8")
    text = shown(run)
    assert "step 40 of 90, about" in text.splitlines()[0]
    told = float(value)
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["loss"])
    assert row == ["loss", f"{told:.4g}", "1", "2", "█▁"]  # the last one is not hidden
    (run / "metrics.jsonl").write_text(rows[1], "utf-8")
    text = shown(run)
    assert text.splitlines()[0].endswith("step 20")
    assert ["loss", f"{told:.4g}", "-", "-"] in [line.split() for line in text.splitlines()]


def test_epochs_become_steps(run):
    (run / "recipe.yaml").write_text(RECIPE.replace("LENGTH", "epochs: 3"), "utf-8")
    assert watch.read_state(run).steps == 150
    (run / "recipe.yaml").write_text(RECIPE.replace("LENGTH", "epochs: 0.85"), "utf-8")
    assert watch.read_state(run).steps == 43  # 42.5: what is left of a step is one
    (run / "recipe.yaml").unlink()
    assert watch.read_state(run).steps is None and "step 40," not in shown(run).splitlines()[0]


def test_the_end_and_a_long_silence(run):
    old = time.time() - 3600
    os.utime(run / "metrics.jsonl", (old, old))
    assert "nothing logged for 1 h 00 min" in shown(run)
    (run / "result.json").write_text("{}", "utf-8")
    assert shown(run).splitlines()[0].endswith("step 40 of 100, finished")


def test_watching_ends_with_the_run(run, monkeypatch):
    """On a terminal the view follows until there is a result."""

    def go_on(_):
        write(run, range(10, 110, 10))
        (run / "result.json").write_text("{}", "utf-8")

    monkeypatch.setattr(watch.time, "sleep", go_on)
    out = io.StringIO()
    watch.watch(run, Console(file=out, force_terminal=True, width=100))
    assert "step 100 of 100, finished" in out.getvalue()


def test_nothing_to_watch(tmp_path):
    with refused("runs.nothing-to-watch", str(tmp_path)):
        watch.read_state(tmp_path)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""), ([1.0], "▁"), ([0, 7], "▁█"), ([2.0, 2.0], "▁▁"), ([-1, 0, 1], "▁▅█"),
        ([1, 10, 100], "▁▅█"),  # logarithmic
    ],
)  # fmt: skip
def test_sparkline(values, bars):
    assert watch.sparkline(values) == bars
    assert len(watch.sparkline(list(range(1000)))) == watch.WIDTH


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_is_that_of_the_block():
    """Sizes far above what the rest of the process moves by; /proc may be read-only in a jail."""
    size = 200_000_000
    held = torch.ones(size // 4)
    del held
    with peak_memory(torch.device("cpu")) as small:
        pass
    with peak_memory(torch.device("cpu")) as large:
        held = torch.ones(size // 4)
        del held
    assert large.of == "process"
    if not small.since_start:
        assert large.bytes - small.bytes > 0.8 * size
