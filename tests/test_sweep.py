"""A matrix of trainings: what runs, what is skipped, what a failure leaves, what is counted."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from refusals import refused

from kava.report.rows import VALIDATION, make_row
from kava.runs.folder import read_metrics, read_result
from kava.sweeps.sweep import names
from kava.system import lock

VOLATILE = {"tokens_per_second", "seconds_per_step"}


def write(folder: Path, name: str, backbone: Path, **changes) -> Path:
    tree = {
        "method": "no_cot", "backbone": str(backbone), "adapter": "full", "num_latents": 4,
        "num_iterations": 1,
        "data": {"train": "synthetic", "train_rows": 16,
                 "validation": "synthetic", "validation_rows": 4},
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
        "eval": {"max_new_tokens": 2},
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({**tree, **changes}), encoding="utf-8")
    return file


def summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


def trajectory(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in VOLATILE} for r in read_metrics(run)]


def files(folder: Path) -> dict[str, int]:
    return {
        str(f.relative_to(folder)): f.stat().st_mtime_ns
        for f in folder.rglob("*") if f.is_file() and f.name not in ("summary.json", "sweep.json")
    }  # fmt: skip


def test_a_matrix_runs_is_skipped_when_done_and_is_summed_up(kava, backbone, tmp_path):
    recipes = [write(tmp_path, "a", backbone), write(tmp_path, "b", backbone, method="kava")]
    words = ["sweep", *recipes, "--seeds", 1, 2, "-o", tmp_path / "out"]
    status, said = kava(*words, "--task", "synthetic", "--limit", 6)
    assert status == 0 and "4 runs: 4 trained" in said
    rows = {row["name"]: row for row in summary(tmp_path / "out")["rows"]}
    assert rows.keys() == {"a", "b"}
    for name, row in rows.items():
        results = [read_result(tmp_path / "out" / f"{name}-seed{seed}") for seed in (1, 2)]
        scores = [result["scores"]["synthetic"] for result in results]
        assert row["accuracies"] == [score["accuracy"] for score in scores]
        first, second = row["accuracies"]
        assert row["accuracy"] == pytest.approx((first + second) / 2, abs=0.006)
        assert row["accuracy_std"] == pytest.approx(abs(first - second) / 2**0.5, abs=0.006)
        assert (row["n"], row["seeds"], row["missing_seeds"]) == (6, [1, 2], [])
    assert (rows["a"]["num_latents"], rows["b"]["num_latents"]) == (None, 4)

    before = files(tmp_path / "out")
    status, said = kava(*words, "--task", "synthetic", "--limit", 6)
    assert status == 0 and "4 runs: 4 finished before" in said
    assert files(tmp_path / "out") == before
    status, said = kava(*words, "--task", "synthetic", "--limit", 5)  # other scores are asked for
    assert status == 0 and "4 runs: 4 scored anew" in said
    assert {row["n"] for row in summary(tmp_path / "out")["rows"]} == {5}
    status, said = kava(*words)  # validation alone was measured by the training
    assert status == 0 and "4 runs: 4 finished before" in said
    assert {(row["task"], row["n"]) for row in summary(tmp_path / "out")["rows"]} == {
        (VALIDATION, 4)
    }


def test_a_task_that_names_its_rows_is_summed_up_under_that_name(kava, backbone, tmp_path):
    file = tmp_path / "mine.jsonl"
    row = {"question": "Monday brought Ann 4 pens. How many?", "answer": "4"}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = ["sweep", write(tmp_path, "a", backbone), "--task", "rows", "--file", file]
    assert kava(*words, "-o", tmp_path / "out")[0] == 0
    (found,) = summary(tmp_path / "out")["rows"]
    assert (found["task"], found["n"], found["missing_seeds"]) == ("rows-mine", 1, [])


def test_each_task_has_a_file_of_its_own(kava, backbone, tmp_path):
    for name, count in (("one", 1), ("two", 2)):
        rows = [{"question": f"Monday brought Ann {n} pens?", "answer": "4"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    words = ["sweep", write(tmp_path, "a", backbone), "-o", tmp_path / "out", "--limit", 2]
    words += ["--task", "rows,gsm8k", "--file"]
    status, said = kava(*words, one)
    assert (status, said.code, said.key) == (2, "data.files-and-tasks", "--file")
    assert " 1 " in said and " 2 " in said and " gsm8k;" in said
    status, said = kava(*words, one, "--file", two, "--file", "c")
    assert (status, said.code, said.key) == (2, "data.files-and-tasks", "--file")
    assert " 3 " in said and " 2 " in said and " c;" in said
    assert not (tmp_path / "out").exists()
    assert kava(*words, one, "--file", two)[0] == 0
    scores = read_result(tmp_path / "out" / "a-seed42")["scores"]
    assert {name: score["n"] for name, score in scores.items()} == {"rows-one": 1, "gsm8k": 2}
    assert kava("sweep", "--status", tmp_path / "out")[0] == 0  # the plan knows the files
    assert kava(*words, two, "--file", one, "--status")[0] == 3


def test_other_rows_of_as_many_are_scored_anew(kava, backbone, tmp_path):
    def mine(name, *answers):
        rows = [{"question": "Monday brought Ann 4 pens. How many?", "answer": a} for a in answers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    out, recipe = tmp_path / "out", write(tmp_path, "a", backbone)
    words = ["sweep", recipe, "-o", out, "--task", "rows"]

    def told(file, *more):
        """The status before, and what a sweep then does."""
        asked = [*words, "--file", file, *more]
        return kava(*asked, "--status")[0], kava(*asked)[1]

    one = mine("rows.jsonl", "4", "5")
    assert "1 trained" in kava(*words, "--file", one)[1]
    status, said = told(one)
    assert status == 0 and "1 finished before" in said
    status, said = told(mine("rows.jsonl", "4", "6"))  # its content
    assert status == 3 and "1 scored anew" in said
    (tmp_path / "b").mkdir()
    status, said = told(mine("b/rows.jsonl", "4", "7"))  # another file
    assert status == 3 and "1 scored anew" in said
    assert kava("sweep", "--status", out)[0] == 0  # what was asked for last
    status, said = told(tmp_path / "b/rows.jsonl", "--limit", 1)
    assert status == 3 and "1 scored anew" in said

    (score,) = read_result(out / "a-seed42")["scores"].values()
    assert score.pop("sha256")  # results of an older version had none, and still count
    old = {**read_result(out / "a-seed42"), "scores": {"rows-rows": score}}
    (out / "a-seed42" / "result.json").write_text(json.dumps(old))
    status, said = told(mine("rows.jsonl", "8"), "--limit", 1)
    assert status == 0 and "1 finished before" in said
    (tmp_path / "rows.jsonl").unlink()  # not to be had: by name and limit
    words += ["--status", "--file", tmp_path / "rows.jsonl", "--limit"]
    assert kava(*words, 1)[0] == 0
    (out / "a-seed42" / "result.json").write_text(json.dumps(old).replace('"n": 1', '"n": 2'))
    assert kava(*words, 1)[0] == 3


def test_a_run_of_a_sweep_is_the_run_that_train_makes(kava, backbone, tmp_path):
    recipes = [write(tmp_path, name, backbone, method=name) for name in ("no_cot", "kava")]
    assert kava("sweep", *recipes, "--seeds", 5, "-o", tmp_path / "out")[0] == 0
    assert kava("train", recipes[1], "seed=5", "-o", tmp_path / "alone")[0] == 0
    assert trajectory(tmp_path / "out" / "kava-seed5") == trajectory(tmp_path / "alone")
    ours, theirs = (tmp_path / run / "recipe.yaml" for run in ("out/kava-seed5", "alone"))
    assert ours.read_text() == theirs.read_text()


def test_a_failure_is_reported_and_the_rest_goes_on(kava, backbone, tmp_path):
    rows = tmp_path / "missing.jsonl"
    bad = write(tmp_path, "bad", backbone, data={"train": str(rows)})
    good = write(tmp_path, "good", backbone)
    out = tmp_path / "out"
    status, said = kava("sweep", bad, good, "--seeds", 1, 2, "-o", out)
    assert status == 1
    assert "4 runs: 2 trained, 2 failed" in said
    assert said.count("missing.jsonl") >= 4  # where it failed, and in the report
    assert "Traceback" in (out / "bad-seed1" / "error.log").read_text()
    assert not (out / "good-seed1" / "error.log").exists()
    assert "Traceback" not in said
    row = summary(out)["rows"][0]
    assert (row["name"], row["accuracy"], row["missing_seeds"]) == ("bad", None, [1, 2])
    assert "missing.jsonl" in row["missing_because"]["1"]
    assert not list(out.glob("*.lock"))

    lines = [{"question": f"q {i} ?", "steps": ["<<1+1=2>>"], "answer": "2"} for i in range(8)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, said = kava("sweep", bad, good, "--seeds", 1, 2, "-o", out)
    assert status == 0 and "4 runs: 2 trained, 2 finished before" in said
    assert not (out / "bad-seed1" / "error.log").exists()


def test_an_error_of_any_kind_stays_with_its_run(kava, backbone, tmp_path, monkeypatch):
    from kava.sweeps import attempt

    whole = attempt.train_run

    def broken(recipe, *rest):
        if recipe.seed == 1:
            raise RuntimeError("out of memory\nand more")
        return whole(recipe, *rest)

    monkeypatch.setattr(attempt, "train_run", broken)
    recipe = write(tmp_path, "a", backbone)
    status, said = kava("sweep", recipe, "--seeds", 1, 2, "-o", tmp_path / "out")
    assert status == 1 and "RuntimeError: out of memory" in said and "1 trained, 1 failed" in said
    assert "and more" in (tmp_path / "out" / "a-seed1" / "error.log").read_text()
    (row,) = summary(tmp_path / "out")["rows"]
    assert (row["seeds"], row["missing_seeds"]) == ([2], [1])
    assert "(1/2)" in said and "only k of m seeds" in said


def test_an_interrupt_stops_the_sweep_and_lets_go_of_the_run(kava, backbone, tmp_path, monkeypatch):
    from kava.sweeps import attempt

    def interrupted(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(attempt, "train_run", interrupted)
    recipe = write(tmp_path, "a", backbone)
    status, said = kava("sweep", recipe, "--seeds", 1, 2, "-o", tmp_path / "out")
    assert status == 130 and "seed2" not in said
    assert not list((tmp_path / "out").glob("*.lock"))


def test_an_interrupted_run_goes_on_and_one_without_checkpoint_is_put_aside(
    kava, backbone, tmp_path, monkeypatch
):
    from kava.training import trainer

    train = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "save_every": 2}
    recipe = write(tmp_path, "a", backbone, train=train)
    evaluate = trainer.StepTrainer.evaluate

    def broken(self, *args, **kwargs):
        raise RuntimeError("cut off")

    for seed, out in ((1, tmp_path / "out"), (1, tmp_path / "whole")):
        if out.name == "out":  # the training's last act fails, after its checkpoint
            monkeypatch.setattr(trainer.StepTrainer, "evaluate", broken)
            assert kava("sweep", recipe, "--seeds", seed, "-o", out)[0] == 1
            monkeypatch.setattr(trainer.StepTrainer, "evaluate", evaluate)
        status, said = kava("sweep", recipe, "--seeds", seed, "-o", out)
        assert status == 0 and ("resuming" in said) == (out.name == "out")
    run = tmp_path / "out" / "a-seed1"
    assert read_result(run)["resumed_from"] == 4
    assert trajectory(run) == trajectory(tmp_path / "whole" / "a-seed1")
    (row,) = summary(tmp_path / "out")["rows"]
    assert row["train_seconds"] is None  # only the rest of it was timed

    (run / "result.json").unlink()  # metrics without a checkpoint: cut off before the first
    status, said = kava("sweep", recipe, "--seeds", 1, "-o", tmp_path / "out")
    assert status == 0 and "a-seed1-1" in said
    assert (tmp_path / "out" / "a-seed1-1" / "metrics.jsonl").is_file()
    assert trajectory(run) == trajectory(tmp_path / "whole" / "a-seed1")


def test_a_run_of_another_recipe_is_neither_kept_nor_overwritten(kava, backbone, tmp_path):
    recipe, out = write(tmp_path, "a", backbone), tmp_path / "out"
    assert kava("sweep", recipe, "--seeds", 1, "-o", out)[0] == 0
    before = files(out)
    words = ["sweep", recipe, "--seeds", 1, 2, "-o", out, "--set", "train.learning_rate=2e-3"]
    status, said = kava(*words, "train.clip=1")
    assert status == 1 and "1 trained, 1 failed" in said
    assert (
        "train.learning_rate: 0.001 in the run, 0.002 given; train.clip: 2.0 in the run, 1.0"
        in said
    )
    assert {name: time for name, time in files(out).items() if "seed1" in name} == before
    (row,) = summary(out)["rows"]
    assert row["seeds"] == [2] and row["missing_seeds"] == [1]

    # A key that came with a later version of the package is no difference if it has its default.
    saved = out / "a-seed1" / "recipe.yaml"
    tree = yaml.safe_load(saved.read_text())
    assert tree["kv"].pop("supervise") == "last"
    saved.write_text(yaml.safe_dump(tree))
    assert "1 finished before" in kava("sweep", recipe, "--seeds", 1, "-o", out)[1]


def test_seeds_are_the_words_that_follow_and_else_the_recipes_own(kava, backbone, tmp_path):
    recipe, out = write(tmp_path, "a", backbone, seed=9), tmp_path / "out"
    for words, wanted in (
        (["--seeds", 3, 4, recipe], {3, 4}),
        ([recipe, "--seeds", 3, "--set", "train.steps=3", "eval.max_new_tokens=3", "-o", out], {3}),
        ([recipe, "--seeds", 3, "--seeds", 4, 3], {3, 4}),
        ([recipe], {9}),
    ):
        status, said = kava("sweep", *words, "--dry-run")
        assert status == 0, said
        found = re.findall(r"a-seed(\d+)\s+planned\s+(\d+)", said)
        assert {int(seed) for seed, _ in found} == wanted and len(found) == len(wanted)
        assert f"{'2 runs' if len(wanted) == 2 else '1 run'}: {len(wanted)} planned;" in said
        assert {steps for _, steps in found} == {"3" if "--set" in words else "2"}
    assert kava("sweep", recipe, "--seeds", "-o", out)[0] == 2
    assert kava("sweep", recipe, "--set", "seed=3")[1].code == "sweeps.seed-in-settings"
    assert "\n1 run: 1 pending\n" in kava("sweep", recipe, "--status", "-o", out)[1]


def test_recipes_of_backbones_are_left_out_aloud(kava, backbone, tmp_path):
    makes = Path(__file__).parents[1] / "recipes" / "quickstart" / "backbone.yaml"
    good = write(tmp_path, "good", backbone)
    status, said = kava("sweep", makes, good, good, "-o", tmp_path / "out")
    assert status == 0 and "1 run: 1 trained" in said
    assert f"{makes}: is a recipe of kava pretrain" in said
    assert f"{good}: given twice; it is run once" in said
    status, said = kava("sweep", makes, "-o", tmp_path / "out")
    assert (status, said.code) == (2, "sweeps.no-training")


def test_bad_input_is_refused_before_anything_runs(kava, backbone, tmp_path):
    good, out = write(tmp_path, "good", backbone), tmp_path / "out"
    typo = write(tmp_path, "typo", backbone, num_latent=4)
    status, said = kava("sweep", good, typo, "-o", out)
    assert (status, said.code, said.key) == (2, "recipe.unknown-key", "num_latent")
    assert "'num_latents'" in said and str(typo) in said
    status, said = kava("sweep", good, "--task", "synthetik", "-o", out)
    assert (status, said.code, said.key) == (2, "recipe.unknown-name", "synthetik")
    status, said = kava("sweep", good, "--task", "", "-o", out)
    assert (status, said.code, said.key) == (2, "cli.empty-name", "--task")
    status, said = kava("sweep", good, "--seeds", 5_000_000_000, "-o", out)
    assert (status, said.code, said.key) == (2, "recipe.bad-value", "seed")
    assert "4294967296" in said
    status, said = kava("sweep", good, "--file", "x.jsonl", "-o", out)
    assert (status, said.code, said.key) == (2, "data.file-without-task", "--file")
    status, said = kava("sweep", good, "--limit", 4, "-o", out)
    assert (status, said.code, said.key) == (2, "cli.limit-without-task", "--limit")
    assert not out.exists()


def test_names_never_clash(tmp_path):
    def named(*paths):
        return names([tmp_path / path for path in paths])

    assert named("a/kava.yaml", "a/cot.yaml") == ["kava", "cot"]
    assert named("a/kava.yaml", "b/kava.yaml", "b/cot.yaml") == ["a-kava", "b-kava", "cot"]
    assert named("x/a/kava.yaml", "y/a/kava.yaml") == ["x-a-kava", "y-a-kava"]
    clash = named("a/kava.yaml", "b/kava.yaml", "c/a-kava.yaml")
    assert len(set(clash)) == 3 and clash[1] == "b-kava"
    with refused("sweeps.same-name"):
        names([Path("/a-b/c.yaml"), Path("/a/b-c.yaml"), Path("/z/c.yaml"), Path("/z/b-c.yaml"),
               Path("/z-b/c.yaml"), Path("/z/y/b-c.yaml"), Path("/z/y-b/c.yaml")])  # fmt: skip


def test_a_run_in_other_hands_is_left_to_them(kava, backbone, tmp_path):
    recipe, out = write(tmp_path, "a", backbone), tmp_path / "out"
    with lock.acquire(out / "a-seed1.lock"):
        status, said = kava("sweep", recipe, "--seeds", 1, 2, "-o", out)
    assert status == 0 and "1 trained, 1 locked by another process" in said
    assert f"process {os.getpid()} on" in said
    assert not (out / "a-seed1").exists()
    (row,) = summary(out)["rows"]
    assert row["missing_seeds"] == [1] and "locked" in row["missing_because"]["1"]


@pytest.mark.processes
def test_two_sweeps_at_once_share_a_matrix(backbone, tmp_path):
    recipe, out = write(tmp_path, "a", backbone), tmp_path / "out"
    command = [sys.executable, "-m", "kava", "sweep", recipe, "--seeds", *"123", "-o", out]
    both = [
        subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trained = [text.count(": trained 2 steps") for text, _ in said]
    assert sum(trained) == 3  # each run once, by one of the two
    assert len(list(out.glob("a-seed?"))) == 3 and not list(out.glob("*.lock*"))
    (row,) = summary(out)["rows"]  # of the last one to end, which has seen all
    assert row["seeds"] == [1, 2, 3]


HOLDER = """
import sys, time
from pathlib import Path
from kava.system import lock
with lock.acquire(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.processes
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    file = tmp_path / "run.lock"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, file], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    told = f"locked by process {other.pid} on {socket.gethostname()}"
    assert lock.holder(file) == told
    with pytest.raises(lock.LockHeld, match=told), lock.acquire(file):
        pass
    other.kill()
    other.communicate()
    assert file.exists() and lock.holder(file) == ""
    with lock.acquire(file):
        assert f"process {os.getpid()} " in lock.holder(file)
        with pytest.raises(lock.LockHeld), lock.acquire(file):
            pass
        assert file.exists()
    assert not file.exists() and lock.holder(file) == ""


def test_a_lock_may_say_anything_about_its_holder(tmp_path):
    file = tmp_path / "run.lock"
    with lock.acquire(file):
        for text in (b"", b"no newline", b"\xff\xfe\n" * 1000):
            file.write_bytes(text)
            assert "locked by" in lock.holder(file) and len(lock.holder(file)) < 400


def test_rows_of_seeds_that_lack_a_score():
    good = {
        "method": "kava", "seed": 1, "steps": 9, "train_seconds": 4.0, "validation_accuracy": 80.0,
        "validation_n": 25, "scores": {"t": {"accuracy": 50.0, "accuracy_se": 5.0, "n": 100,
        "forward_passes": 6.0, "ms_per_question": 2.0, "accuracy_by_steps": {"1": [50.0, 100]}}},
    }  # fmt: skip
    row = make_row("kava", {1: good, 2: {**good, "scores": {}}, 3: None}, "t")
    assert (row["accuracy"], row["seeds"], row["missing_seeds"]) == (50.0, [1], [2, 3])
    row = make_row("kava", {1: good, 2: None}, VALIDATION)
    assert (row["accuracy"], row["accuracy_se"], row["n"]) == (80.0, 8.0, 25)  # sqrt(.8 .2 / 25)
    assert row["forward_passes"] is None
    empty = make_row("kava", {1: None}, "t")
    assert (empty["accuracy"], empty["n"], empty["method"]) == (None, None, "kava")


# -- several GPUs of this machine ------------------------------------------------------------------


@pytest.mark.processes
def test_several_gpus_have_a_run_each_and_a_failure_or_a_kill_is_one_run_alone(
    kava, backbone, tmp_path, monkeypatch
):
    """The processes are real; that there are two GPUs is not, so they compute on the CPU."""
    from kava.sweeps import gpus

    monkeypatch.setattr(gpus, "visible_gpus", lambda: ["4", "GPU-7"])
    started, start = [], gpus._start

    def note(number, gpu, *words):
        one = start(number, gpu, *words)
        started.append((number, gpu))
        if number == 2:
            one.process.kill()
        return one

    monkeypatch.setattr(gpus, "_start", note)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    good, killed = (write(tmp_path, name, backbone) for name in ("good", "killed"))
    words = ["sweep", good, write(tmp_path, "bad", tmp_path / "none"), killed, "--seeds", 1]
    words += ["-o", tmp_path / "out"]
    status, said = kava(*words)
    assert status == 1 and "3 runs: 1 trained, 2 failed" in said, (status, said)
    found = {run["run"]: run for run in summary(tmp_path / "out")["runs"]}
    assert [found[name]["outcome"] for name in ("good-seed1", "bad-seed1", "killed-seed1")] == [
        "trained", "failed", "failed"
    ]  # fmt: skip
    assert "GPU " in found["killed-seed1"]["reason"]
    assert [number for number, _ in started] == [0, 1, 2]
    assert {gpu for _, gpu in started[:2]} == {gpu for _, gpu in started} == {"4", "GPU-7"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

    monkeypatch.setattr("kava.sweeps.dry_run.visible_gpus", lambda: ["4", "GPU-7"])
    assert "2 GPUs of this machine" in kava(*words, "--dry-run")[1]


@pytest.mark.processes
def test_a_stop_ends_the_processes_of_all_gpus(backbone, tmp_path, monkeypatch):
    from rich.console import Console

    from kava.sweeps import gpus
    from kava.sweeps.attempt import Scoring
    from kava.sweeps.sweep import plan
    from kava.system import signals

    processes, start = [], gpus._start

    def note(*words):
        processes.append(start(*words).process)
        return gpus._Working(words[0], words[1], processes[-1], None)

    def stop(_):
        raise signals.Preempted

    monkeypatch.setattr(gpus, "_start", note)
    monkeypatch.setattr(gpus, "wait", stop)
    quiet = Console(quiet=True)
    runs = plan([str(write(tmp_path, "a", backbone))], (1, 2, 3), [], tmp_path / "out", quiet)
    with pytest.raises(signals.Preempted):
        gpus.run_all(["0", "1"], runs, Scoring(), quiet)
    assert [process.exitcode != 0 for process in processes] == [True, True]


def test_gpus_have_the_names_that_this_process_was_given(monkeypatch):
    import torch

    from kava.sweeps.gpus import visible_gpus

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for given in ("3, 5", "GPU-a,GPU-b", None):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == (given.replace(" ", "").split(",") if given else ["0", "1"])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert visible_gpus() == []
