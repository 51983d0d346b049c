"""A training run: every term logged, killed and resumed as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from refusals import refused
from rich.console import Console
from transformers import get_scheduler
from typer.testing import CliRunner

from kava.cli import app
from kava.reasoning.resolve import load_resolved
from kava.runs.folder import read_metrics, read_result
from kava.training.arguments import arguments
from kava.training.run import train_run
from kava.training.trainer import StepTrainer

VOLATILE = {"tokens_per_second", "seconds_per_step"}


def write_recipe(folder: Path, backbone: Path, **changes) -> Path:
    tree = {
        "method": "kava",
        "backbone": str(backbone),
        "num_latents": 6,
        "num_iterations": 2,
        "lora": {"r": 4},
        "codi": {"weight": 1},
        "kv": {"weight": 1, "supervise": "all"},
        "data": {
            "train": "synthetic", "train_rows": 64,
            "validation": "synthetic", "validation_rows": 8,
        },
        "train": {
            "steps": 12, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3,
            "log_every": 1, "save_every": 4,
        },
        "eval": {"every": 6, "max_new_tokens": 4},
    }  # fmt: skip
    file = folder / "recipe-given.yaml"
    file.write_text(yaml.safe_dump({**tree, **changes}), encoding="utf-8")
    return file


def trajectory(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in VOLATILE} for r in read_metrics(run)]


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    """An uninterrupted run of 12 steps; LoRA dropout is on, so random states matter."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(folder, backbone)
    done = CliRunner().invoke(app, ["train", str(recipe), "-o", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return folder / "run", recipe, done.stdout


def test_every_term_is_logged_at_every_logging_step(whole):
    run, _, _ = whole
    steps = [r for r in read_metrics(run) if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 13))
    wanted = {"student_ce", "teacher_ce", "codi", "kv", "loss", "grad_norm", "learning_rate"}
    wanted |= {"tokens_per_second", "seconds_per_step", "kv_step_1", "kv_step_2", "kv_step_3"}
    assert all(wanted <= r.keys() for r in steps)
    assert all(r["seconds_per_step"] > 0 < r["tokens_per_second"] for r in steps)
    parts = steps[0]
    total = parts["student_ce"] + parts["teacher_ce"] + parts["codi"] + parts["kv"]
    assert parts["loss"] == pytest.approx(total, rel=1e-5)


def test_the_first_step_and_the_last_are_logged_however_few_there_are(backbone, tmp_path, kava):
    recipe, run = write_recipe(tmp_path, backbone), tmp_path / "run"
    words = ["train.log_every=100", "train.steps=4", "eval.every=2"]
    status, said = kava("train", recipe, *words, "-o", run)
    assert status == 0, said
    first, last = (r for r in read_metrics(run) if "loss" in r)
    assert (first["step"], last["step"]) == (1, 4)
    shown = [line for line in said.out.splitlines() if "  step " in line]
    told = [
        f"step {step}  student CE {of['student_ce']:.3f}" for step, of in ((2, first), (4, last))
    ]
    assert [text in line for text, line in zip(told, shown, strict=True)] == [True, True]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_during_the_warmup_of_every_schedule(schedule, tmp_path):
    settings = [f"train.schedule={schedule}", "train.warmup=0.5", "train.steps=10"]
    recipe = load_resolved("recipes/bench/cot.yaml", [*settings, "train.learning_rate=1.0"])
    given = arguments(recipe, tmp_path, torch.device("cpu"), False, 4)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=given.learning_rate)
    warmup = given.get_warmup_steps(10)
    rates = get_scheduler(given.lr_scheduler_type, optimiser, warmup, 10)
    seen = []
    for _ in range(10):
        seen.append(rates.get_last_lr()[0])
        optimiser.step()
        rates.step()
    assert seen[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert (seen[6:] == [1] * 4) == (schedule == "constant")


def test_validation_runs_where_the_recipe_says(whole):
    steps = [r["step"] for r in read_metrics(whole[0]) if "validation_accuracy" in r]
    assert steps == [6, 12]


def test_the_resolved_recipe_is_printed_and_saved(whole):
    run, _, out = whole
    saved = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert saved in out
    trained = load_resolved(run / "checkpoint" / "recipe.yaml")
    assert trained.lora.targets == ["q_proj", "k_proj", "v_proj", "o_proj"]  # the family's
    trained.lora.targets = None
    assert load_resolved(run / "recipe.yaml") == trained


def test_the_result_says_how_it_came_about(whole):
    result = read_result(whole[0])
    assert result["steps"] == 12 and result["seed"] == 42 and result["rows"] == 64
    assert {"versions", "machine", "command", "time"} <= result.keys()


@pytest.mark.processes
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, kava):
    run, recipe, _ = whole
    command = [sys.executable, "-m", "kava", "train", recipe, "-o", tmp_path / "run"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    saved = tmp_path / "run" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    deadline = time.monotonic() + 300
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "finished before it could be killed"
    assert not (tmp_path / "run" / "result.json").exists()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:  # as a later kill leaves it
        metrics.write(json.dumps({"step": 11, "loss": 0.0}) + '\n{"step": 12, "lo')

    status, said = kava("train", recipe, "-o", tmp_path / "run", "--resume")
    assert status == 0, said
    assert trajectory(tmp_path / "run") == trajectory(run)  # bitwise: the same decimals
    weights = "checkpoint/kava.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (run / weights).read_bytes()


def test_a_finished_run_is_not_overwritten(whole, kava):
    run, recipe, _ = whole
    status, said = kava("train", recipe, "-o", run)
    assert (status, said.code, said.key) == (2, "runs.holds-run", str(run))


def test_resume_refuses_another_recipe(whole, kava):
    run, recipe, _ = whole
    status, said = kava("train", recipe, "num_latents=5", "-o", run, "--resume")
    assert (status, said.code, said.key) == (2, "runs.other-recipe", str(run))
    assert "num_latents" in said


def test_a_loss_that_is_not_finite_stops_the_run(backbone, kava, tmp_path):
    recipe = write_recipe(tmp_path, backbone)
    changes = "train.learning_rate=1e30", "train.clip=1e30"
    status, said = kava("train", recipe, *changes, "-o", tmp_path / "r")
    assert (status, said.code) == (2, "training.not-finite") and "Traceback" not in said


def test_a_trace_that_its_eviction_cannot_take_is_refused_before_the_first_step(
    backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(StepTrainer, "train", lambda *_, **__: pytest.fail("a step was begun"))
    recipe = write_recipe(tmp_path, backbone)
    changes = ["kv.weight=1", "kv.eviction.name=full", "num_latents=2", "num_iterations=1"]
    run = tmp_path / "r"
    with refused("reasoning.trace-too-long", "kv.eviction.name"):
        train_run(load_resolved(recipe, changes), run, Console(quiet=True))
    assert not (run / "checkpoints").exists()


def test_a_validation_question_among_the_training_rows_is_refused(backbone, tmp_path):
    rows = [{"question": f"q {i} ?", "steps": [], "answer": str(i)} for i in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    recipe = write_recipe(tmp_path, backbone, data={"train": str(file), "validation": str(file)})
    from kava.training.rows import read_rows

    with refused("training.shared-validation", "data.validation") as told:
        read_rows(load_resolved(recipe).data)
    assert "data: 8 " in str(told.value)
