"""What is asked of SLURM, and how a sweep's runs are said to get on; nothing is submitted."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import Recipe, Resources
from kava.runs.folder import read_result
from kava.sweeps import attempt, record, slurm, status
from kava.sweeps.attempt import Run, Scoring
from kava.system import assets, lock, slurm_queue

ROOT = Path(__file__).parents[1]
SETTINGS = ["llama1b_aug", "llama1b_aug_nl", "llama3b_aug", "llama3b_aug_nl", "qwen05b_aug",
            "qwen05b_aug_nl"]  # fmt: skip


def write(folder: Path, backbone: Path, **changes) -> Path:
    tree = {
        "method": "no_cot", "backbone": str(backbone), "adapter": "full",
        "data": {"train": "synthetic", "train_rows": 16,
                 "validation": "synthetic", "validation_rows": 4},
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1,
                  "save_every": 2},
        "eval": {"max_new_tokens": 2},
    }  # fmt: skip
    file = folder / "a.yaml"
    file.write_text(yaml.safe_dump({**tree, **changes}), encoding="utf-8")
    return file


# -- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, wanted",
    [("90", 90), ("90:00", 90), ("1:30", 2), ("24:00:00", 1440), ("0:10:01", 11), ("2-0", 2880),
     ("1-12:30", 2190), ("1-00:00:30", 1441), (None, None)],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(text, wanted):
    assert slurm.minutes(text) == wanted


LINES = "a\n#SBATCH --uid=0", "a\rb", "a;id", "$(id)", "a`id`", "a'b", 'a"b', "a|b", "a%j"


@pytest.mark.parametrize("option", ["--partition", "--account"])
@pytest.mark.parametrize("name", [*LINES, "", "a b", "-x", "a\n"])
def test_no_line_of_a_script_comes_from_a_name(option, name, backbone, tmp_path, kava):
    out = tmp_path / "out"
    words = ("sweep", write(tmp_path, backbone), "--launcher", "slurm", "-o", out, option, name)
    code, said = kava(*words, "--dry-run")
    assert (code, said.code, said.key) == (2, "sweeps.not-a-name", option), said
    assert said.count("\n") == 1 and not out.exists()
    slurm.SubmitOptions(**{option[2:]: "gpu-a,gpu_b.2:x@y+z"})


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_nor_from_the_folder(name, dry, backbone, tmp_path, kava):
    out = tmp_path / name
    recipe = write(tmp_path, backbone)
    code, said = kava("sweep", recipe, "--launcher", "slurm", "-o", out, *dry)
    assert (code, said.code, said.key) == (2, "sweeps.not-a-folder-of-jobs", "-o"), said
    assert said.count("\n") == 1 and not out.exists()
    slurm.check_output(tmp_path / "my runs, ä=1+2~3")


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "1-", "1.5"])
def test_another_time_is_refused(text):
    with refused("sweeps.time-not-written-so", "--time"):
        slurm.minutes(text)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 30))
@settings(max_examples=40)
def test_job_arrays_together_keep_the_limit(sizes, limit):
    tree = {"method": "kava", "backbone": "b", "data": {"train": "d"},
            "train": {"steps": 1, "learning_rate": 1}}  # fmt: skip
    runs = [
        Run("r", Recipe.model_validate({**tree, "resources": {"minutes": 10 + i}}), Path(str(j)))
        for i, size in enumerate(sizes) for j in range(size)
    ]  # fmt: skip
    if limit < len(sizes):
        with refused("sweeps.too-few-at-once", "--array-limit") as told:
            slurm.group_by_resources(runs, limit)
        assert f" {len(sizes)} " in str(told.value)
        return
    groups = slurm.group_by_resources(runs, limit)
    assert [len(group) for group, _ in groups] == sizes
    assert all(len({run.recipe.resources.minutes for run in group}) == 1 for group, _ in groups)
    shares = [share for _, share in groups]
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
    assert sum(shares) <= limit
    assert [share for _, share in slurm.group_by_resources(runs, None)] == sizes
    if len(sizes) == 1:
        assert shares == [min(limit, sizes[0])]


def test_the_papers_kava_runs_are_one_pattern(monkeypatch, tmp_path, backbone, kava):
    found = {file.parent.name: file for file in assets.find_all("recipes/*_aug*/kava.yaml")}
    assert sorted(found) == SETTINGS
    assert all(load_resolved(file).method == "kava" for file in found.values())
    monkeypatch.chdir(tmp_path)  # the shell finds nothing there
    assert sorted(f.parent.name for f in assets.find_all("recipes/*_aug*/kava.yaml")) == SETTINGS
    (tmp_path / "recipes" / "x_aug").mkdir(parents=True)
    own = tmp_path / "recipes" / "x_aug" / "kava.yaml"
    own.touch()
    assert [f.resolve() for f in assets.find_all("recipes/*_aug*/kava.yaml")] == [own]
    code, said = kava("sweep", "recipes/*_augh/kava.yaml", "--dry-run")
    wanted = (2, "system.nothing-matches", "recipes/*_augh/kava.yaml")
    assert (code, said.code, said.key) == wanted


def test_words_of_jobs_need_jobs(kava, backbone, tmp_path, monkeypatch):
    recipe, out = write(tmp_path, backbone), tmp_path / "out"
    for words in (["--partition", "p"], ["--gpus", 0], ["--nodes", 1], ["--processes", 2],
                  ["--time", "5"], ["--array-limit", 3]):  # fmt: skip
        code, said = kava("sweep", recipe, *words, "-o", out)
        assert (code, said.code) == (2, "cli.job-option-without-slurm")
    code, said = kava("sweep", recipe, "--launcher", "slrum", "-o", out)
    assert (code, said.code, said.key) == (2, "cli.unknown-launcher", "slrum")
    assert "'slurm'" in said
    code, said = kava("sweep", recipe, "--launcher", "slurm", "--gpus", -1, "-o", out)
    assert (code, said.code, said.key) == (2, "recipe.bad-value", "resources.gpus")
    code, said = kava("sweep", "--launcher", "slurm", "-o", out)
    assert (code, said.code) == (2, "cli.no-recipe")
    monkeypatch.setenv("PATH", "")
    code, said = kava("sweep", recipe, "--launcher", "slurm", "-o", out)
    assert (code, said.code) == (2, "sweeps.no-slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, said = kava("sweep", recipe, "--launcher", "slurm", "-o", out)
    assert (code, said.code) == (2, "sweeps.no-submitit") and ".[slurm]" in said
    assert not out.exists()


@pytest.mark.parametrize(
    "asked, per_node, together, told",
    [({}, 1, 1, "1 GPU, 4 CPUs, 32 GB, 24:00 h"),
     ({"gpus": 0}, 1, 1, "no GPU, 4 CPUs, 32 GB, 24:00 h"),
     ({"gpus": 4, "minutes": 90}, 4, 4, "4 GPUs, 4 processes of 4 CPUs and 32 GB, 1:30 h"),
     ({"gpus": 4, "processes": 4, "cpus": 1}, 4, 4,
      "4 GPUs, 4 processes of 1 CPU and 32 GB, 24:00 h"),
     ({"gpus": 0, "processes": 2}, 2, 2, "no GPU, 2 processes of 4 CPUs and 32 GB, 24:00 h"),
     ({"nodes": 2}, 1, 2, "2 nodes of 1 GPU, 2 processes of 4 CPUs and 32 GB, 24:00 h"),
     ({"nodes": 2, "gpus": 8}, 8, 16,
      "2 nodes of 8 GPUs, 16 processes of 4 CPUs and 32 GB, 24:00 h"),
     ({"nodes": 3, "gpus": 0, "processes": 2}, 2, 6,
      "3 nodes of no GPU, 6 processes of 4 CPUs and 32 GB, 24:00 h")],
)  # fmt: skip
def test_each_gpu_has_a_process(asked, per_node, together, told, tmp_path):
    wanted = Resources(**asked)
    assert (wanted.processes_per_node, wanted.all_processes) == (per_node, together)
    assert slurm.describe_resources(wanted) == told
    submitit = pytest.importorskip("submitit")
    executor = slurm._executor(tmp_path, wanted, "a", slurm.SubmitOptions(cluster="debug"), 1)
    assert isinstance(executor, submitit.AutoExecutor)
    given = executor.parameters
    assert (given["nodes"], given["tasks_per_node"]) == (wanted.nodes, per_node)
    assert given.get("gpus_per_node", 0) == wanted.gpus
    assert given["mem_gb"] == 32 * per_node


@pytest.mark.parametrize("asked", ["gpus=4", "gpus=1", "nodes=2"])
def test_another_number_of_processes_than_of_gpus_is_refused(asked, kava, backbone, tmp_path):
    recipe = write(tmp_path, backbone, resources={"gpus": 2, "processes": 2})
    load_resolved(recipe, ["resources.nodes=2"])
    if asked == "nodes=2":
        asked = "processes=3"
    with refused("recipe.uneven-processes", "resources.processes") as caught:
        load_resolved(recipe, [f"resources.{asked}"])
    assert "\n" not in str(caught.value)


def test_a_batch_that_the_processes_cannot_share_is_refused_before(
    kava, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm, "check_installed", lambda cluster: None)
    recipe, out = write(tmp_path, backbone), tmp_path / "out"
    words = ["sweep", recipe, "-o", out]
    job = ["--launcher", "slurm", "--nodes", 3, "--gpus", 0]
    refused = r"a-seed42: train\.batch_size 4 .* 3 .*: 1, 2, 4\b"
    code, said = kava(*words, *job, "--dry-run")
    assert code == 1 and "1 would fail" in said and re.search(refused, said)
    code, said = kava(*words, *job)
    assert code == 1 and "1 run: 1 failed" in said and re.search(f"failed  {refused}", said)
    assert not (out / "slurm").exists()
    code, said = kava(*words, *job[:2], "--nodes", 2, "--gpus", 2, "--dry-run")
    assert code == 0 and "1 as SLURM jobs, 1 at a time; each 2 nodes of 2 GPUs, 4 proc" in said
    assert kava(*words, "--dry-run")[0] == 0  # here it is one process, whatever a job would have
    assert kava(*words)[0] == 0
    code, said = kava(*words, *job)  # nothing is left to train
    assert code == 0 and "1 finished before" in said


def test_what_a_job_asks_for_does_not_make_another_run(kava, backbone, tmp_path):
    recipe, out = write(tmp_path, backbone), tmp_path / "out"
    assert kava("sweep", recipe, "-o", out)[0] == 0
    code, said = kava("sweep", recipe, "-o", out, "--set", "resources.cpus=9")
    assert code == 0 and "1 finished before" in said


# -- how runs get on -----------------------------------------------------------------------------


def test_the_status_of_a_sweep_on_this_machine(kava, backbone, tmp_path, monkeypatch):
    recipe, out = write(tmp_path, backbone), tmp_path / "out"
    words = ["sweep", recipe, "--seeds", 1, 2, 3, "--task", "synthetic", "--limit", 4, "-o", out]
    whole = attempt.train_run

    def broken(wanted, folder, *rest):
        if wanted.seed == 1:
            raise RuntimeError("out of memory")
        result = whole(wanted, folder, *rest)
        if wanted.seed == 3:  # as a kill would leave it
            (folder / "result.json").unlink()
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(attempt, "train_run", broken)
    assert kava(*words)[0] == 130
    monkeypatch.setattr(attempt, "train_run", whole)
    code, said = kava("sweep", "--status", out)
    lines = said.splitlines()
    assert code == 1 and lines[0].split() == ["run", "state", "step", "loss", "job", "log"]
    assert lines[1].split() == ["a-seed1", "failed", "0", "of", "4", str(out / "a-seed1/error.log")]
    losses = {}
    for seed in (2, 3):
        rows = (out / f"a-seed{seed}" / "metrics.jsonl").read_text().splitlines()
        losses[seed] = [row["loss"] for row in map(json.loads, rows) if "loss" in row][-1]
    assert lines[2].split() == ["a-seed2", "finished", "4", "of", "4", f"{losses[2]:.4g}"]
    assert lines[3].split() == ["a-seed3", "preempted", "4", "of", "4", f"{losses[3]:.4g}"]
    assert lines[4] == "a-seed1 failed: RuntimeError: out of memory"
    assert lines[5] == "3 runs: 1 finished, 1 preempted, 1 failed"

    with lock.acquire(out / "a-seed3.lock"):
        assert "a-seed3  running" in kava("sweep", "--status", out)[1]
    assert kava(*words, "--status")[1].splitlines()[:4] == lines[:4]  # by the recipes, the same
    code, said = kava("sweep", recipe, "--seeds", 4, 2, "--status", "-o", out)
    assert code == 3 and "a-seed4  pending   0 of 4" in said  # none has failed, one is to come

    assert kava(*words)[0] == 0
    before = (out / "summary.json").stat().st_mtime_ns
    assert kava("sweep", "--status", out)[0] == 0
    assert (out / "summary.json").stat().st_mtime_ns == before
    (out / "summary.json").unlink()
    code, said = kava("sweep", "--status", out)
    assert code == 0 and "3 runs: 3 finished" in said and "summary in" in said
    (row,) = json.loads((out / "summary.json").read_text())["rows"]
    assert (row["seeds"], row["task"], row["n"]) == ([1, 2, 3], "synthetic", 4)

    (out / "a-seed3" / "metrics.jsonl").unlink()  # as where it was lost
    assert "a-seed3  finished  4 of 4" in kava("sweep", "--status", out)[1]

    score = read_result(out / "a-seed1")  # a score that was asked for is missing
    (out / "a-seed1" / "result.json").write_text(json.dumps({**score, "scores": {}}))
    assert "a-seed1  preempted" in kava("sweep", "--status", out)[1]
    code, said = kava("sweep", recipe, "--seeds", 2, "--set", "train.clip=1", "--status", "-o", out)
    assert code == 1 and "(train.clip: 2.0 in the run, 1.0 given)" in said


@pytest.mark.parametrize(
    "file, text, wrong",
    [("result.json", "{", "not valid JSON"), ("result.json", "[]", "not the result of a run"),
     ("result.json", '{"scores": []}', "not the result of a run"),
     ("recipe.yaml", "method: nope", "unknown method 'nope'")],
)  # fmt: skip
def test_a_damaged_run_is_told_as_failed_beside_the_others(file, text, wrong, backbone, tmp_path):
    given, out = load_resolved(write(tmp_path, backbone)), tmp_path / "out"
    asked = [record.PlannedRun(Run("a", given, out / f"a-seed{n}"), Scoring()) for n in (1, 2)]
    asked[0].run.folder.mkdir(parents=True)
    (asked[0].run.folder / "recipe.yaml").write_text((tmp_path / "a.yaml").read_text())
    (asked[0].run.folder / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5}\n')
    (asked[0].run.folder / file).write_text(text)
    damaged, other = status.read_statuses(asked, out)
    assert (damaged.state, other.state) == ("failed", "pending")
    assert str(asked[0].run.folder / file) in damaged.reason and wrong in damaged.reason


def test_a_plan_grows_and_a_folder_without_one_is_no_sweep(kava, backbone, tmp_path):
    recipe, out = load_resolved(write(tmp_path, backbone)), tmp_path / "out"
    one, two = (Run("a", recipe, out / f"a-seed{seed}") for seed in (1, 2))
    record.add_to_plan(out, [one], Scoring())
    record.add_to_plan(out, [two, one], Scoring(("synthetic",), limit=3))
    found = record.load_plan(out)
    assert [asked.run for asked in found] == [one, two]
    assert all((asked.scoring.names, asked.scoring.limit) == (["synthetic"], 3) for asked in found)

    code, said = kava("sweep", "--status", tmp_path)
    assert (code, said.code, said.key) == (2, "sweeps.no-sweep", str(tmp_path))
    code, said = kava("sweep", "--status", tmp_path / "nowhere")
    nowhere = str(tmp_path / "nowhere")
    assert (code, said.code, said.key) == (2, "system.no-such-file", nowhere)
    code, said = kava("sweep", "--status", out, tmp_path)
    assert (code, said.code) == (2, "cli.status-of-several") and str(out) in said
    whole = json.loads((out / "sweep.json").read_text())["runs"]["a-seed1"]
    for broken in (
        {"a": {}}, {}, [], {"a": {**whole, "limit": "x"}}, {"a": {**whole, "limit": 0}},
        {"a": {**whole, "tasks": "synthetic"}}, {"a": {**whole, "recipe": []}},
    ):  # fmt: skip
        (out / "sweep.json").write_text(json.dumps({"runs": broken}))
        code, said = kava("sweep", "--status", out)
        wanted = (2, "sweeps.not-a-plan", str(out / "sweep.json"))
        assert (code, said.code, said.key) == wanted, broken
    (out / "slurm").mkdir()
    (out / "slurm" / "jobs.jsonl").write_text('{"run": "a"}\n')
    code, said = kava("sweep", tmp_path / "a.yaml", "--status", "-o", out)
    wanted = (2, "sweeps.not-a-job", str(out / "slurm" / "jobs.jsonl"))
    assert (code, said.code, said.key) == wanted and "line 1:" in said


@pytest.mark.parametrize("name", ["../b", "/b", "a/b", "..", ".", "", "a\nb", "a\x1b[2J", "a\\b"])
@pytest.mark.parametrize("where", ["key", "name"])
def test_a_plan_names_no_run_elsewhere(name, where, backbone, tmp_path, kava):
    out, recipe = tmp_path / "out", load_resolved(write(tmp_path, backbone))
    record.add_to_plan(out, [Run("a", recipe, out / "a-seed42")], Scoring())
    assert [asked.run.folder for asked in record.load_plan(out)] == [out / "a-seed42"]
    file = out / "sweep.json"
    (entry,) = json.loads(file.read_text())["runs"].values()
    key, entry["name"] = (name, "a") if where == "key" else ("a-seed42", name)
    file.write_text(json.dumps({"runs": {key: entry}}))
    code, said = kava("sweep", "--status", out)
    assert (code, said.code, said.key) == (2, "sweeps.run-elsewhere", name), said
    assert said.count("\n") == 1 and "\x1b" not in said


@pytest.mark.parametrize(
    "job, log",
    [("7", "../../secret"), ("7", "/secret"), ("7", ".."), ("7 --me", "7.out"), ("", "x")],
)
def test_a_job_has_a_number_and_a_log_beside_it(job, log, tmp_path):
    (tmp_path / "slurm").mkdir()
    record.add_jobs(tmp_path, [record.SlurmJob("a-seed1", "7_3", "7_3_0_log.out")])
    assert record.jobs(tmp_path)["a-seed1"].job == "7_3"
    record.add_jobs(tmp_path, [record.SlurmJob("a-seed1", job, log)])
    with refused("sweeps.not-a-job") as caught:
        record.jobs(tmp_path)
    assert "line 2" in str(caught.value)


@pytest.mark.parametrize(
    "in_queue, begun, state",
    [("PENDING", False, "pending"), ("PENDING", True, "preempted"), ("RUNNING", True, "running"),
     ("COMPLETING", True, "running"), ("REQUEUED", True, "preempted"), ("SUSPENDED", 1, "running"),
     ("CANCELLED", True, "failed"), ("TIMEOUT", True, "failed"), (None, False, "failed"),
     ("PREEMPTED", True, "preempted")],
)  # fmt: skip
def test_what_slurm_says_of_a_job_is_what_its_run_does(
    backbone, tmp_path, monkeypatch, in_queue, begun, state
):
    out = tmp_path / "out"
    run = Run("a", load_resolved(write(tmp_path, backbone)), out / "a-seed1")
    (out / "slurm").mkdir(parents=True)
    (out / "slurm" / "7_0_log.out").write_text("hello\nslurmstepd: error: too slow\n\n")
    record.add_jobs(out, [record.SlurmJob("a-seed1", "7", "7_0_log.out")])
    if begun:
        run.folder.mkdir()
        (run.folder / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5}\n')
        (run.folder / "recipe.yaml").write_text((tmp_path / "a.yaml").read_text())
    monkeypatch.setattr(slurm_queue, "states", lambda jobs: {"7": in_queue} if in_queue else {})
    (line,) = status.read_statuses([record.PlannedRun(run, Scoring())], out)
    assert (line.state, line.job) == (state, "7")
    assert (line.step, line.steps, line.loss) == ((3, 4, 1.5) if begun else (None, 4, None))
    assert line.log == str(out / "slurm" / "7_0_log.out")
    wanted = f"job 7 ended without a result{f' ({in_queue})' if in_queue else ''}"
    assert line.reason == (f"{wanted}: slurmstepd: error: too slow" if state == "failed" else "")


@pytest.mark.parametrize(
    "came, in_queue, again",
    [([signal.SIGUSR2], None, True),  # submitit's: before the end of the job's time
     ([signal.SIGTERM, signal.SIGUSR2], None, True),
     ([signal.SIGTERM], "RUNNING", True),  # the grace before a preemption
     ([signal.SIGTERM], "COMPLETING", False),  # cancelled, or SLURM queues it again by itself
     ([signal.SIGTERM], None, False)],  # no job of SLURM
)  # fmt: skip
def test_a_job_queues_itself_again_unless_it_is_taken_away(
    backbone, tmp_path, monkeypatch, came, in_queue, again
):
    run = Run("a", load_resolved(write(tmp_path, backbone)), tmp_path / "a-seed1")
    asked = []

    def struck(*rest):
        try:
            os.kill(os.getpid(), came[0])
        finally:  # another may come during the clearing up
            for number in came[1:]:
                os.kill(os.getpid(), number)

    def submitit(number, frame):
        asked.append(number)
        sys.exit(-1)

    monkeypatch.setattr(slurm.JobWork, "_run_attempt", struck)
    monkeypatch.setattr(slurm_queue, "states", lambda jobs: dict.fromkeys(jobs, in_queue))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if in_queue:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.signal(signal.SIGUSR2, submitit)
    try:
        with pytest.raises(SystemExit) as ended:
            slurm.JobWork.from_run(run, Scoring())()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert asked == [signal.SIGUSR2] * again
    assert ended.value.code == (-1 if again else 128 + signal.SIGTERM)
