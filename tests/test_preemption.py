"""A run that is asked to stop, wherever it is just then, goes on later as if nothing had been."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from kava.reasoning import checkpoint
from kava.reasoning.resolve import validate_resolved
from kava.recipe.schema import Recipe, dump
from kava.runs import watch
from kava.runs.folder import read_metrics, read_result
from kava.sweeps import attempt as launch
from kava.sweeps.attempt import SCORED, SKIPPED, TRAINED, Run, Scoring, attempt
from kava.system import signals
from kava.system.signals import Preempted
from kava.training import trainer

VOLATILE = {"tokens_per_second", "seconds_per_step"}
SIGNAL = signal.SIGUSR2


def recipe(backbone: Path, log_every: int = 1) -> Recipe:
    return validate_resolved({
        "method": "kava", "backbone": str(backbone), "num_latents": 4, "num_iterations": 1,
        "lora": {"r": 4}, "kv": {"weight": 1},
        "data": {"train": "synthetic", "train_rows": 20,
                 "validation": "synthetic", "validation_rows": 4},
        "train": {"steps": 8, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3,
                  "log_every": log_every},
        "eval": {"max_new_tokens": 2, "every": 6},
    }, "test")  # fmt: skip


def go(folder: Path, wanted: Recipe, tasks=("synthetic",)):
    console = Console(quiet=True)
    scoring = Scoring(tasks, limit=4 if tasks else None)
    return attempt(Run("a", wanted, folder), scoring, lambda *words: None, console)


def asked_to_stop(folder: Path, wanted: Recipe, numbers=(SIGNAL,), **rest) -> list[int]:
    asked: list[int] = []
    with pytest.raises(Preempted), signals.listen_for(asked, *numbers):
        go(folder, wanted, **rest)
    assert not folder.with_name(folder.name + ".lock").exists()
    assert not signals.stop_requested()
    return asked


def trajectory(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in VOLATILE} for r in read_metrics(run)]


def same(one: Path, other: Path) -> bool:
    """Whether two runs end in the same weights."""
    found = [sorted((run / "checkpoint").rglob("*.safetensors")) for run in (one, other)]
    assert [file.name for file in found[0]] == [file.name for file in found[1]]
    pairs = [(load_file(a), load_file(b)) for a, b in zip(*found, strict=True)]
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a | b)


@pytest.fixture
def strike(monkeypatch):
    """Sends this process a signal when a function is called for the nth time."""

    def arm(owner, name, nth, number=SIGNAL):
        whole, calls = getattr(owner, name), []

        def struck(*args, **kwargs):
            calls.append(1)
            if len(calls) == nth:
                os.kill(os.getpid(), number)
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, struck)
        return partial(monkeypatch.setattr, owner, name, whole)

    return arm


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert go(folder, recipe(backbone)).status == TRAINED
    return folder


@pytest.mark.parametrize(
    "owner, name, nth, step",
    [
        (trainer.StepTrainer, "compute_loss", 5, 3),  # the first of two micro-batches of step 3
        (trainer.StepTrainer, "evaluate", 1, 6),  # the validation after step 6
        (trainer.StepTrainer, "compute_loss", 16, 8),  # the last step, in the middle of an epoch
        (trainer.StepTrainer, "evaluate", 2, 8),  # the validation after it
    ],
)
def test_a_training_ends_at_the_next_steps_boundary_and_goes_on_from_there(
    backbone, whole, tmp_path, strike, owner, name, nth, step
):
    run, wanted = tmp_path / "run", recipe(backbone)
    calm = strike(owner, name, nth)
    assert asked_to_stop(run, wanted) == [SIGNAL]
    assert [f.name for f in (run / "checkpoints").iterdir()] == [f"checkpoint-{step}"]
    assert trajectory(run)[-1]["step"] == step and read_result(run) is None
    assert not (run / "error.log").exists()
    calm()
    assert go(run, wanted).status == TRAINED
    assert read_result(run)["resumed_from"] == step
    assert trajectory(run) == trajectory(whole)
    assert same(run, whole)
    ends = [read_result(folder)["validation_accuracy"] for folder in (run, whole)]
    assert ends[0] == ends[1] is not None


def test_no_step_is_missing_from_the_log_where_it_was_cut(backbone, tmp_path, strike):
    wanted = recipe(backbone, log_every=4)
    assert go(tmp_path / "whole", wanted, tasks=()).status == TRAINED
    calm = strike(trainer.StepTrainer, "compute_loss", 5)
    asked_to_stop(tmp_path / "run", wanted, tasks=())
    calm()
    assert go(tmp_path / "run", wanted, tasks=()).status == TRAINED
    cut, uncut = (
        {record["step"]: record for record in trajectory(tmp_path / run) if "loss" in record}
        for run in ("run", "whole")
    )
    assert (list(cut), list(uncut)) == ([1, 3, 4, 8], [1, 4, 8])
    for term in ("loss", "student_ce", "kv"):
        mean = (2 * cut[3][term] + cut[4][term]) / 3
        assert mean == pytest.approx(uncut[4][term], rel=1e-5)
        assert cut[3][term] != pytest.approx(uncut[4][term], rel=1e-5)
        assert cut[8][term] == uncut[8][term]


def test_what_is_nearly_done_is_finished_first(backbone, whole, tmp_path, strike):
    run, wanted = tmp_path / "run", recipe(backbone)
    calm = strike(checkpoint, "save", 1)  # the trained weights, when the last step is done
    asked_to_stop(run, wanted)
    assert read_result(run)["scores"] == {} and same(run, whole)
    calm()
    assert go(run, wanted).status == SCORED
    assert go(run, wanted).status == SKIPPED


def test_before_and_after_the_training_nothing_is_waited_for(backbone, tmp_path, strike):
    run, wanted = tmp_path / "run", recipe(backbone)
    strike(launch, "load_task", 1)
    asked_to_stop(run, wanted)
    assert not run.exists()
    strike(launch, "score_run", 1)
    asked_to_stop(run, wanted)
    assert read_result(run)["scores"] == {} and not (run / "predictions").exists()
    assert not (run / "error.log").exists()
    assert go(run, wanted).status == SCORED


def test_a_second_signal_does_not_disturb_the_clearing_up(backbone, tmp_path, monkeypatch):
    def struck(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("not interrupted")
        finally:
            os.kill(os.getpid(), SIGNAL)
            done.append(True)

    done: list[bool] = []
    monkeypatch.setattr(launch, "load_task", struck)
    numbers = (SIGNAL, signal.SIGTERM)
    assert asked_to_stop(tmp_path / "run", recipe(backbone), numbers) == [signal.SIGTERM, SIGNAL]
    assert done


def test_a_training_by_hand_saves_on_sigterm_and_resumes(backbone, whole, tmp_path, strike, kava):
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(dump(recipe(backbone)))
    words = ("train", file, "-o", run)
    calm = strike(trainer.StepTrainer, "compute_loss", 5, signal.SIGTERM)
    code, said = kava(*words)
    assert code == 128 + signal.SIGTERM and "Traceback" not in said
    assert "kava: received SIGTERM; checkpoint saved; continue with --resume" in said
    assert [f.name for f in (run / "checkpoints").iterdir()] == ["checkpoint-3"]
    calm()
    calm = strike(checkpoint, "save", 1, signal.SIGTERM)  # the last step is done: too late
    code, said = kava(*words, "--resume")
    assert code == 0 and "trained 8 steps" in said
    assert read_result(run)["resumed_from"] == 3
    assert trajectory(run) == trajectory(whole) and same(run, whole)


def test_a_sweep_here_saves_on_sigterm_and_the_same_line_goes_on(
    backbone, whole, tmp_path, strike, kava
):
    file, out = tmp_path / "a.yaml", tmp_path / "out"
    file.write_text(dump(recipe(backbone)))
    words = ("sweep", file, "--seeds", 42, 43, "-o", out)
    calm = strike(trainer.StepTrainer, "compute_loss", 5, signal.SIGTERM)
    code, said = kava(*words)
    assert code == 128 + signal.SIGTERM and "Traceback" not in said
    assert said.splitlines()[-1] == (
        "kava: received SIGTERM; checkpoint saved; run the same command again to continue"
    )
    run = out / "a-seed42"
    assert [f.name for f in (run / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert [f.name for f in out.iterdir() if f.name != "sweep.json"] == [run.name]  # no lock
    calm()
    code, said = kava(*words)
    assert code == 0 and "2 runs: 2 trained" in said
    assert read_result(run)["resumed_from"] == 3
    assert trajectory(run) == trajectory(whole) and same(run, whole)


def test_an_epoch_is_logged_as_its_share_of_steps_and_the_length_told_from_it(backbone, tmp_path):
    """The fifth step on 18 rows has two: half of its micro-batches, and a whole step."""
    tree = recipe(backbone).model_dump(by_alias=True)
    tree["data"]["train_rows"] = 18
    tree["train"] |= {"steps": None, "epochs": 1.5, "micro_batch_size": 1}
    assert go(tmp_path / "run", validate_resolved(tree, "test"), tasks=()).status == TRAINED
    rows = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert [row["epoch"] for row in rows] == [step / 5 for step in range(1, 9)]
    assert watch.read_state(tmp_path / "run").steps == 8


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(SIGNAL)
    with signals.listen_for([], SIGNAL):
        assert signal.getsignal(SIGNAL) is not before
    assert signal.getsignal(SIGNAL) is before
