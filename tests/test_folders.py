"""What a training does to the folder that it is given: nothing that is there is lost or mixed."""

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from parallel_worker import train
from refusals import refused
from rich.console import Console

import kava.evaluation.score
from kava.backbones.tiny import tiny_backbone
from kava.data.tasks import load_task
from kava.errors import KavaError
from kava.evaluation.score import score_run
from kava.reasoning.answering import AnsweringReasoner
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import dump
from kava.runs import folder as run_folder
from kava.runs.folder import back_up, check_free, exclusive_lock, read_metrics, read_result
from kava.system import lock
from kava.system.files import explain_disk_errors
from kava.training import run as runs

QUIET = Console(quiet=True)


def write(file: Path, backbone: Path, **changes) -> Path:
    tree = {
        "method": "no_cot", "backbone": str(backbone), "adapter": "full",
        "data": {"train": "synthetic", "train_rows": 8},
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
        "eval": {"max_new_tokens": 2},
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# mine\n" + yaml.safe_dump({**tree, **changes}), encoding="utf-8")
    return file


def fail():
    raise KavaError("nothing to train on")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# -- what is there already -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "there",
    ["checkpoint/notes.txt", "kava.json", "config.json", "model.safetensors", "tokenizer.json",
     "predictions/gsm8k.jsonl", "recipe.yaml"],
)  # fmt: skip
def test_a_folder_of_something_else_is_left_as_it_is(there, kava, backbone, tmp_path):
    recipe, out = write(tmp_path / "given.yaml", backbone), tmp_path / "out"
    (out / there).parent.mkdir(parents=True)
    (out / there).write_text("{}")
    before = contents(tmp_path)
    found = str(out / there.split("/")[0])
    with refused("runs.would-overwrite", found):
        check_free(out, load_resolved(recipe))
    if there.startswith("checkpoint"):
        status, said = kava("train", recipe, "-o", out)
        assert (status, said.code, said.key) == (2, "runs.would-overwrite", found)
        assert said.splitlines()[-1].startswith(f"kava: {found}: ")
    assert contents(tmp_path) == before


def test_the_recipe_that_is_given_is_never_overwritten(kava, backbone, tmp_path):
    recipe = write(tmp_path / "mine/recipe.yaml", backbone)
    for words in ((), ("seed=7",)):
        status, said = kava("train", recipe, *words, "-o", tmp_path / "mine")
        assert (status, said.code, said.key) == (2, "runs.would-overwrite", str(recipe))
    # One that kava itself wrote is the run's own recipe, unless something is changed by the way.
    recipe.write_text(dump(load_resolved(recipe)))
    before = contents(tmp_path)
    assert kava("train", recipe, "seed=7", "-o", tmp_path / "mine")[0] == 2
    assert contents(tmp_path) == before
    with pytest.MonkeyPatch.context() as patch:  # a start that fails, in a folder that is ours
        patch.setattr(runs, "train", lambda *rest: fail())
        assert kava("train", recipe, "-o", tmp_path / "mine")[0] == 2
    assert contents(tmp_path) == before
    assert kava("train", recipe, "-o", tmp_path / "mine")[0] == 0
    assert contents(tmp_path)["mine/recipe.yaml"] == before["mine/recipe.yaml"]


def test_a_sweep_leaves_such_a_folder_to_its_owner(kava, backbone, tmp_path):
    recipe, out = write(tmp_path / "a.yaml", backbone), tmp_path / "out"
    (out / "a-seed1").mkdir(parents=True)
    (out / "a-seed1" / "kava.json").write_text("{}")
    for more, what in ((["--dry-run"], "1 would fail"), ([], "1 failed")):
        code, said = kava("sweep", recipe, "--seeds", 1, "-o", out, *more)
        assert code == 1 and what in said and f"{out}/a-seed1/kava.json: " in said
    assert contents(out / "a-seed1") == {"kava.json": b"{}"}


def test_a_start_that_fails_at_once_leaves_nothing_and_may_be_repeated(kava, backbone, tmp_path):
    recipe, out = write(tmp_path / "a.yaml", backbone, method="icot"), tmp_path / "out"
    status, said = kava("train", recipe, "-o", out)
    assert (status, said.code) == (2, "training.too-short") and not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert kava("train", recipe, "-o", out)[0] == 2
    assert contents(out) == {"notes.txt": b"mine"}
    for more, what in ((["--dry-run"], "1 would fail"), ([], "1 failed")):
        code, said = kava("sweep", recipe, "--seeds", 1, "-o", tmp_path / "swept", *more)
        assert code == 1 and what in said and "method_options: " in said


def test_what_a_killed_start_left_is_begun_anew(kava, backbone, tmp_path):
    recipe, out = write(tmp_path / "a.yaml", backbone), tmp_path / "out"
    wanted = load_resolved(recipe)
    out.mkdir()
    jobs = wanted.model_copy(update={"resources": wanted.resources.model_copy(update={"cpus": 9})})
    (out / "recipe.yaml").write_text(dump(jobs))  # of a job that had other resources
    (out / "begun.json").write_text("{")
    assert kava("train", recipe, "-o", out)[0] == 0
    names = {"checkpoint", "metrics.jsonl", "recipe.yaml", "result.json"}
    assert {file.name for file in out.iterdir()} == names


# -- where it is ---------------------------------------------------------------------------------


def test_a_folder_is_the_same_by_whatever_path(backbone, tmp_path):
    recipe = write(tmp_path / "a.yaml", backbone)
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    for other in (tmp_path / "link", tmp_path / "run" / ".." / "link"):
        with exclusive_lock(tmp_path / "run"), refused("runs.in-use", str(other)):
            train(recipe, other)
    train(recipe, tmp_path / "link")
    assert len(read_metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_here_is_a_folder_and_the_root_is_none(command, kava, backbone, tmp_path, monkeypatch):
    recipe = write(tmp_path / "a.yaml", backbone)
    if command == "pretrain":
        recipe.write_text(yaml.safe_dump({
            "name": "small",
            "architecture": {"family": "llama", "hidden_size": 16, "intermediate_size": 16,
                             "num_layers": 1, "num_heads": 2, "num_kv_heads": 1},
            "vocabulary": {"size": 300},
            "data": {"train": "synthetic", "train_rows": 8},
            "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
        }))  # fmt: skip
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, said = kava(command, recipe, "-o", "/")
    assert (status, said.code, said.key) == (2, "runs.not-a-folder", "/")
    assert said.splitlines()[-1].startswith("kava: /: ")
    assert kava(command, recipe, "-o", ".")[0] == 0
    assert read_result(tmp_path / "here")["steps"] == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.yaml", "here"]


def test_the_folder_one_is_in_is_not_moved_aside(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path("."), Path("/"), tmp_path):
        with refused("runs.inside", str(path)):
            back_up(path, QUIET)
    assert os.getcwd() == str(tmp_path / "here")


# -- with what it goes on ------------------------------------------------------------------------


@pytest.fixture
def cut(backbone, tmp_path):
    """(recipe, rows, a backbone, a run that was cut off): all of them this test's own."""
    rows, own = tmp_path / "rows.jsonl", tmp_path / "backbone"
    write_rows(rows)
    tiny_backbone("llama", own)
    recipe = write(
        tmp_path / "a.yaml", own, adapter="lora", lora={"r": 2},
        data={"train": str(rows), "validation": "synthetic", "validation_rows": 2},
        train={"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "save_every": 2},
        eval={"max_new_tokens": 2},
    )  # fmt: skip
    train(recipe, tmp_path / "run", stop_after=3)
    return recipe, rows, own, tmp_path / "run"


def write_rows(file: Path, answer: str = "2") -> None:
    lines = [{"question": f"q {i} ?", "steps": ["<<1+1=2>>"], "answer": answer} for i in range(4)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_other_rows_are_not_resumed_with(cut):
    recipe, rows, _, run = cut
    write_rows(rows, answer="3")
    before = contents(run)
    with refused("runs.other-rows", "train") as told:
        train(recipe, run, resume=True)
    was = json.loads((run / "begun.json").read_text())["data"]["train"]["sha256"]
    line = f"{run}: the train data had 4 rows with SHA-256 {was[:12]}, and now has 4 rows with "
    assert str(told.value).startswith(line)
    assert contents(run) == before
    write_rows(rows)
    train(recipe, run, resume=True)
    assert read_result(run)["resumed_from"] == 2 and not (run / "begun.json").exists()


def test_another_backbone_is_not_resumed_with(cut):
    recipe, _, own, run = cut
    tiny_backbone("llama", own, seed=1)
    before = contents(run)
    with refused("runs.other-backbone", str(own)) as told:
        train(recipe, run, resume=True)
    assert "fingerprint" in str(told.value)
    assert contents(run) == before
    tiny_backbone("llama", own)
    (run / "begun.json").write_text('{"data": 3}')
    with refused("runs.damaged", str(run / "begun.json")):
        train(recipe, run, resume=True)
    (run / "begun.json").unlink()  # a run that began before there was one
    train(recipe, run, resume=True)
    assert read_result(run)["resumed_from"] == 2


# -- what is never saved -------------------------------------------------------------------------


@pytest.mark.parametrize("save_every", [None, 1])
def test_weights_that_the_last_step_spoilt_are_not_saved(save_every, backbone, tmp_path):
    spoilt = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "save_every": save_every}
    recipe = write(tmp_path / "a.yaml", backbone, train=spoilt)
    from kava.training.trainer import StepTrainer

    whole = StepTrainer._clip_grad_norm

    def clipped(self, model):
        norm = whole(self, model)  # finite, and so was the loss
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "_clip_grad_norm", clipped)
        with refused("reasoning.weight-not-finite") as told:
            train(recipe, tmp_path / "run")
        assert f"'{told.value.key}'" in str(told.value)
    assert not (tmp_path / "run" / "checkpoint").exists() and read_result(tmp_path / "run") is None
    assert not list((tmp_path / "run").glob("checkpoints/*"))


# -- what two processes do at once ---------------------------------------------------------------


def test_scores_of_two_at_once_are_both_kept(backbone, tmp_path, monkeypatch):
    recipe, run = write(tmp_path / "a.yaml", backbone), tmp_path / "run"
    train(recipe, run)
    reasoner = Reasoner.from_pretrained(run, device="cpu")
    whole = read_result
    both = threading.Barrier(2, timeout=2)

    def read(folder):  # each has read what there is before either writes, if nothing prevents it
        found = whole(folder)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return found

    monkeypatch.setattr(kava.evaluation.score, "read_result", read)
    tasks = [replace(load_task("synthetic", limit=2), name=name) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda task: score_run(reasoner, task, run, timed_alone=0), tasks))
    for kept in (whole(run), json.loads((run / "checkpoint/kava.json").read_text())["record"]):
        assert kept["scores"].keys() == {"one", "two"}
    assert not (run / "scores.lock").exists()


def test_scores_wait_for_a_folder_only_so_long(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.0)
    reasoner = Reasoner.from_backbone(str(backbone), device="cpu")
    task = load_task("synthetic", limit=1)
    in_use = refused("runs.scores-in-use", str(tmp_path))
    with lock.acquire(tmp_path / "scores.lock"), in_use:
        score_run(reasoner, task, tmp_path, timed_alone=0)
    score_run(reasoner, task, tmp_path, timed_alone=0)
    assert read_result(tmp_path)["scores"].keys() == {"synthetic"}


def test_a_place_for_scores_is_tried_before_anything_is_answered(
    kava, backbone, tmp_path, monkeypatch
):
    if not Path("/proc").is_dir():
        pytest.skip("no folder here that nobody writes to")
    monkeypatch.delattr(AnsweringReasoner, "answer")
    words = ("--task", "synthetic", "--limit", 2, "-o", "/proc/scores")
    status, said = kava("eval", backbone, *words)
    found = status, said.code, said.key
    assert found == (2, "system.not-written", "/proc/scores/result.json")
    assert "some space" not in said and said.count("\n") == 1  # more of it would not help


@pytest.mark.parametrize(
    "reason, code",
    [(errno.ENOSPC, "system.not-written"), (errno.EDQUOT, "system.not-written"),
     (errno.EROFS, "system.not-writable"), (errno.EACCES, "system.not-writable"),
     (errno.EEXIST, "system.not-writable")],
)  # fmt: skip
def test_space_is_asked_for_only_where_it_would_help(reason, code, tmp_path):
    with refused(code, str(tmp_path)) as told, explain_disk_errors(tmp_path):
        raise OSError(reason, os.strerror(reason))
    assert ("some space" in str(told.value)) is (code == "system.not-written")


# -- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, hint",
    [("train", "if checkpoints were saved, continue from the last one with --resume"),
     ("sweep", "run the same command again to continue")],
)  # fmt: skip
def test_an_interrupt_says_how_to_go_on(command, hint, kava, backbone, tmp_path, monkeypatch):
    recipe = write(tmp_path / "a.yaml", backbone)

    def struck(*rest, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("kava.training.trainer.StepTrainer.compute_loss", struck)
    code, said = kava(command, recipe, "-o", tmp_path / "run")
    assert code == 130 and said.splitlines()[-1] == f"kava: interrupted; {hint}"
    assert not list(tmp_path.rglob("*.lock")) + list(tmp_path.rglob("*.training"))
