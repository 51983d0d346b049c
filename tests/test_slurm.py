"""Runs as jobs: of a real SLURM on this machine, and of submitit's local executor."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from refusals import refused
from rich.console import Console
from safetensors.torch import load_file
from slurm_here import CannotStart
from slurm_here import slurm as real_slurm

from kava.runs.folder import read_metrics, read_result
from kava.sweeps import record, slurm, status, sweep
from kava.sweeps.attempt import LOCKED, SKIPPED, SUBMITTED, Scoring
from kava.system import slurm_queue

LONG = 60  # steps; enough to be met on the way
VOLATILE = {"tokens_per_second", "seconds_per_step"}


@pytest.fixture(scope="module")
def cluster():
    """SLURM's folder; jobs run with one thread, so that their numbers are those of `whole`."""
    try:
        with real_slurm() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            yield folder
            subprocess.run(["scancel", "--quiet", "--user", os.environ.get("USER", "root")])
    except CannotStart as why:
        pytest.skip(f"no SLURM here: {why}")


def write(folder: Path, name: str, backbone: Path, steps: int = 2, **changes) -> Path:
    tree = {
        "method": "kava", "backbone": str(backbone), "num_latents": 4, "num_iterations": 1,
        "lora": {"r": 4}, "kv": {"weight": 1},
        "data": {"train": "synthetic", "train_rows": 20,
                 "validation": "synthetic", "validation_rows": 4},
        "train": {"steps": steps, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
        "eval": {"max_new_tokens": 2},
        "resources": {"gpus": 0, "cpus": 1, "memory_gb": 0.5, "minutes": 20},
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**tree, **changes}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    """The long run, uninterrupted, in this process."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = planned(folder, [write(folder, "long", backbone, LONG)], 1)
        sweep.sweep(runs, Scoring(), folder, Console(quiet=True))
    finally:
        torch.set_num_threads(threads)
    return runs[0].folder


def planned(output: Path, recipes: list[Path], *seeds: int):
    return sweep.plan(list(map(str, recipes)), seeds, [], output, Console(quiet=True))


def trajectory(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in VOLATILE} for r in read_metrics(run)]


def same(one: Path, other: Path) -> bool:
    files = [sorted((run / "checkpoint").rglob("*.safetensors")) for run in (one, other)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]] != []
    pairs = [(load_file(a), load_file(b)) for a, b in zip(*files, strict=True)]
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a | b)


def until(ready, what: str, seconds: float = 480):
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


def steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def states(said: str) -> dict[str, str]:
    """Run to state in the table of --status."""
    found = re.findall(r"^(\S+-seed\d+) +(\w+)", said, re.MULTILINE)
    return dict(found)


# -- a real SLURM --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def submitted(cluster, backbone, tmp_path_factory):
    """A sweep of three recipes as jobs: two that end, one that fails at once; and its words."""
    folder = tmp_path_factory.mktemp("sweep")
    good = write(folder, "long", backbone, LONG)
    bad = write(folder, "bad", backbone, data={"train": str(folder / "missing.jsonl")})
    words = ["sweep", good, bad, "--seeds", 1, "-o", folder / "out", "--task", "synthetic",
             "--limit", 4, "--launcher", "slurm", "--partition", "other", "--account", "physics",
             "--array-limit", 2, "--time", "0:10:00"]  # fmt: skip
    return folder / "out", words


def test_preempted_jobs_go_on_and_end_as_uninterrupted_ones(submitted, whole, kava):
    out, words = submitted
    status_, said = kava(*words, "--dry-run")
    assert status_ == 0 and not out.exists()
    assert "2 as SLURM jobs, 2 at a time; each no GPU, 1 CPU, 0.5 GB, 0:10 h" in said
    status_, said = kava(*words)
    assert status_ == 0, said
    assert "2 submitted as job array 1, at most 2 at a time" in said
    assert "2 runs: 2 submitted" in said
    script = (out / "slurm" / "1_submission.sh").read_text()
    for line in ("--partition=other", "--account=physics", "--array=0-1%2", "--time=10",
                 "--cpus-per-task=1", "--mem=512MB", "--requeue", "--signal=USR2@300",
                 "--job-name=kava-out"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "gpus" not in script

    # While they wait or run, nothing is submitted again.
    status_, said = kava(*words)
    assert (
        status_ == 0
        and "2 runs: 2 locked by another process" in said
        and "SLURM job 1_0 is" in said
    )
    assert len(record.jobs(out)) == 2 and not list(out.glob("slurm/2*"))
    assert kava("sweep", "--status", out)[0] == status.UNFINISHED

    # Told to stop as SLURM tells before the end of a job's time: it queues itself again.
    run = out / "long-seed1"
    until(lambda: steps(run) > 3, "the long run has begun")
    subprocess.run(["scancel", "--signal=USR2", "1_0"], check=True)
    until(lambda: slurm_queue.states(["1_0"])["1_0"] == "PENDING", "it is in the queue again")
    cut = last_step(run)
    assert 3 < cut < LONG and not (out / "long-seed1.lock").exists()
    assert (run / "checkpoints" / f"checkpoint-{cut}").is_dir()
    until(lambda: slurm_queue.states(["1_1"])["1_1"] == "FAILED", "the bad one fails")
    code, said = kava("sweep", "--status", out)
    assert states(said) == {"long-seed1": "preempted", "bad-seed1": "failed"}
    assert code == status.SOME_FAILED
    assert re.search(
        rf"long-seed1  preempted  {cut} of {LONG}  +[\d.]+  1_0  \S+1_0_0_log.out", said
    )
    assert re.search(r"bad-seed1 failed: kava.*missing.jsonl", said)

    # Taken away by SLURM itself, which starts it again.
    until(lambda: released("1_0") or steps(run) > cut + 3, "it goes on")
    subprocess.run(["scontrol", "requeue", "1_0"], check=True)
    until(lambda: slurm_queue.states(["1_0"])["1_0"] == "PENDING", "it is in the queue again")
    again = last_step(run)
    assert cut < again < LONG and (run / "checkpoints" / f"checkpoint-{again}").is_dir()

    until(lambda: released("1_0") or slurm_queue.states(["1_0"])["1_0"] == "COMPLETED", "it ends")
    assert trajectory(run) == trajectory(whole)
    assert same(run, whole)
    assert read_result(run)["scores"]["synthetic"]["n"] == 4
    assert read_result(run)["command"] == shlex.join(["kava", *map(str, words)])
    log = (out / "slurm" / "1_0_0_log.out").read_text()
    assert f"trained {LONG} steps" in log and log.count("resuming kava") == 2
    assert log.count("received SIG") == 2

    # What is done is not submitted; the summary comes with the last of them.
    long_alone = [word for word in words if not str(word).endswith("bad.yaml")]
    code, said = kava(*long_alone)
    assert code == 0 and "1 run: 1 finished before" in said and "summary in" in said
    (row,) = json.loads((out / "summary.json").read_text())["rows"]
    assert (row["task"], row["n"], row["seeds"]) == ("synthetic", 4, [1])
    assert len(record.jobs(out)) == 2 and not list(out.glob("slurm/2*"))


def test_a_job_that_waits_or_is_cancelled(cluster, backbone, tmp_path, kava):
    recipe, out = write(tmp_path, "a", backbone), tmp_path / "out"
    words = ["sweep", recipe, "--launcher", "slurm", "--partition", "shut", "-o", out]
    code, said = kava(*words)
    number = re.search(r"1 submitted as job (\d+);", said)[1]
    code, said = kava("sweep", "--status", out)
    assert code == status.UNFINISHED and states(said) == {"a-seed42": "pending"}
    assert "1 locked by another process" in kava(*words)[1]
    assert f"job {number} is PENDING" in kava(*words, "--dry-run")[1]
    subprocess.run(["scancel", number], check=True)
    code, said = kava("sweep", recipe, "-o", out, "--status")
    assert code == status.SOME_FAILED and states(said) == {"a-seed42": "failed"}
    assert f"a-seed42 failed: job {number} ended without a result (CANCELLED)" in said
    code, said = kava(*words)
    assert code == 0 and "1 submitted as job" in said
    again = record.jobs(out)["a-seed42"].job
    assert int(again) > int(number)
    subprocess.run(["scancel", again], check=True)


def test_what_slurm_refuses_leaves_nothing(cluster, backbone, tmp_path, kava):
    recipe, out = write(tmp_path, "a", backbone), tmp_path / "out"
    code, said = kava("sweep", recipe, "--launcher", "slurm", "--partition", "nope", "-o", out)
    assert (code, said.code) == (2, "sweeps.slurm-refuses")
    assert "invalid partition" in said.lower() and "Traceback" not in said  # in SLURM's words
    assert not out.exists()
    assert kava("sweep", recipe, "-o", out)[0] == 0  # and one that is there stays as it is
    before = sorted(out.iterdir())
    words = ["sweep", recipe, "--seeds", 1, "--launcher", "slurm", "-o", out]
    assert kava(*words, "--partition", "nope")[0] == 2
    assert sorted(out.iterdir()) == before


def last_step(run: Path) -> int:
    return read_metrics(run)[-1]["step"]


def released(job: str) -> None:
    """SLURM lets two minutes pass before it starts a job again, from when the last start is over.

    That may be after the job is seen in the queue, so this is said again for as long as it waits.
    While slurmd's processes of the last start are there, they may still report an end, which would
    be taken for that of the next start.
    """
    if slurm_queue.states([job]).get(job) == "PENDING" and not supervised(number := numbers(job)):
        update = f"JobId={number}", "StartTime=now"
        subprocess.run(["scontrol", "update", *update], capture_output=True)


def supervised(job: str) -> bool:
    """Whether a process of slurmd looks after one of the job's steps."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if file.read_bytes().startswith(f"slurmstepd: [{job}.".encode()):
                return True
    return False


def numbers(job: str) -> str:
    """The number of its own that an array's element has."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%A", f"--jobs={job}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


# -- submitit's local executor -------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_job_of_the_local_executor_does_the_same(backbone, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    out, console = tmp_path / "out", Console(quiet=True)
    runs = planned(out, [write(tmp_path, "long", backbone, LONG)], 1)
    options = slurm.SubmitOptions(cluster="local")
    outcomes = sweep.sweep(runs, Scoring(), out, console, options)
    assert [outcome.status for outcome in outcomes] == [SUBMITTED]
    process = int(record.jobs(out)["long-seed1"].job)
    try:
        long, file = runs[0].folder, runs[0].lock
        until(lambda: steps(long) > 3, "the long run has begun")
        working = int(file.read_text().split()[0])
        assert slurm.predicted_state(runs[0], Scoring(), "").status == LOCKED
        os.kill(working, signal.SIGUSR2)
        assert os.waitpid(process, 0)[1] == 0
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    cut = read_result(long)["resumed_from"]
    assert 3 < cut < LONG
    assert trajectory(long) == trajectory(whole) and same(long, whole)
    (line,) = status.read_statuses(record.load_plan(out), out)
    assert (line.state, line.step, line.steps) == ("finished", LONG, LONG)
    outcomes = sweep.sweep(runs, Scoring(), out, console, options)
    assert [outcome.status for outcome in outcomes] == [SKIPPED]
    assert (out / "summary.json").is_file()


# -- jobs of two processes -----------------------------------------------------------------------

SHARED = {
    "train": {"steps": LONG, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3,
              "log_every": 1, "save_every": 4},
    "resources": {"gpus": 0, "processes": 2, "cpus": 1, "memory_gb": 0.5, "minutes": 20},
}  # fmt: skip
SCORED = Scoring(("synthetic",), limit=5)
MEASURED = {"ms_per_question", "ms_per_question_in_batch", "tokens_per_second", "peak_memory",
            "command", "time"}  # fmt: skip


@pytest.fixture(scope="module")
def shared(backbone, tmp_path_factory):
    """The folder of a sweep: one run, uninterrupted, by two processes of the local executor."""
    out = tmp_path_factory.mktemp("shared")
    runs = planned(out, [write(out, "long", backbone, **SHARED)], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        sweep.sweep(runs, SCORED, out, Console(quiet=True), slurm.SubmitOptions(cluster="local"))
    assert os.waitpid(int(record.jobs(out)["long-seed1"].job), 0)[1] == 0
    return out


def test_the_local_executor_has_one_node(backbone, tmp_path):
    out = tmp_path / "out"
    runs = planned(out, [write(tmp_path, "a", backbone, resources={"nodes": 2, "gpus": 0})], 1)
    with refused("sweeps.one-node", "resources.nodes"):
        sweep.sweep(runs, Scoring(), out, Console(quiet=True), slurm.SubmitOptions(cluster="local"))
    assert not out.exists()


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_two_processes_of_a_job_do_what_one_does(shared, backbone, tmp_path):
    (wanted,) = planned(tmp_path, [write(tmp_path, "long", backbone, **SHARED)], 1)
    sweep.sweep([wanted], SCORED, tmp_path, Console(quiet=True))
    found, expected = shared / "long-seed1", wanted.folder
    for one, other in zip(*map(trajectory, (found, expected)), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
    for file in (expected / "checkpoint").rglob("*.safetensors"):
        weights = load_file(file)
        for name, weight in load_file(found / file.relative_to(expected)).items():
            torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=2e-5)
    predictions = [(run / "predictions/synthetic.jsonl").read_bytes() for run in (found, expected)]
    assert predictions[0] == predictions[1]
    results = [read_result(run) for run in (found, expected)]
    assert [result["processes"] for result in results] == [2, 1]
    scores = [result["scores"]["synthetic"] for result in results]
    assert scores[0].keys() == scores[1].keys()
    for key in scores[0].keys() - MEASURED:
        assert scores[0][key] == scores[1][key], key
    main, other = (file.read_text() for file in sorted(shared.glob("slurm/*_log.out")))
    assert main.count("trained 60 steps") == main.count("synthetic: ") == 1
    assert "long-seed1" not in other and not list(shared.glob("*.lock"))
    (line,) = status.read_statuses(record.load_plan(shared), shared)
    assert (line.state, line.step, Path(line.log).read_text()) == ("finished", LONG, main)


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_two_processes_stop_together_and_one_that_is_killed_ends_the_job(
    cluster, shared, backbone, tmp_path, kava
):
    out, run = tmp_path / "out", tmp_path / "out/long-seed1"
    recipe = write(tmp_path, "long", backbone, **SHARED)
    words = ["sweep", recipe, "--seeds", 1, "-o", out, "--task", "synthetic", "--limit", 5,
             "--launcher", "slurm"]  # fmt: skip
    code, said = kava(*words)
    number = re.search(
        r"1 submitted as job (\d+); each no GPU, 2 processes of 1 CPU and 0.5 GB,", said
    )[1]
    assert code == 0
    script = (out / "slurm" / f"{number}_submission.sh").read_text()
    assert "#SBATCH --nodes=1\n" in script and "#SBATCH --ntasks-per-node=2\n" in script
    assert "#SBATCH --mem=1GB\n" in script and "gpus" not in script

    until(lambda: steps(run) > 5, "the run has begun")
    subprocess.run(["scancel", "--signal=USR2", number], check=True)
    until(lambda: slurm_queue.states([number])[number] == "PENDING", "it is in the queue again")
    cut = last_step(run)
    assert 5 < cut < LONG and (run / f"checkpoints/checkpoint-{cut}").is_dir()
    log = (out / "slurm" / f"{number}_0_log.out").read_text()
    assert log.count("received SIGUSR2") == log.count("Requeued job") == 1
    assert "received SIG" not in (out / "slurm" / f"{number}_1_log.out").read_text()
    assert states(kava("sweep", "--status", out)[1]) == {"long-seed1": "preempted"}

    until(lambda: released(number) or steps(run) > cut + 5, "it goes on")
    assert states(kava("sweep", "--status", out)[1]) == {"long-seed1": "running"}
    # The main process cannot notice; as on GPUs, where it waits for the other for minutes.
    for process, number_ in ((0, signal.SIGSTOP), (1, signal.SIGKILL)):
        os.kill(tasks(number)[process], number_)
    until(lambda: slurm_queue.states([number])[number] == "FAILED", "the job fails")
    assert not tasks(number) and read_result(run) is None
    code, said = kava("sweep", "--status", out)
    assert code == status.SOME_FAILED and states(said) == {"long-seed1": "failed"}
    # Which of them depends on whether the other had the time to write it before SLURM ended it too.
    lines = ("another of the 2 processes is gone", f"job {number} ended without a result (FAILED)")
    assert any(f"long-seed1 failed: {line}" in said for line in lines)

    code, said = kava(*words)
    again = re.search(r"1 submitted as job (\d+);", said)[1]
    until(lambda: slurm_queue.states([again])[again] == "COMPLETED", "it goes on to the end")
    assert read_result(run)["resumed_from"] > cut
    whole = shared / "long-seed1"
    assert trajectory(run) == trajectory(whole) and same(run, whole)
    files = [folder / "predictions/synthetic.jsonl" for folder in (run, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (run / "error.log").exists() and not list(out.glob("*.lock"))
    assert kava("sweep", "--status", out)[0] == status.ALL_FINISHED


def tasks(job: str) -> dict[int, int]:
    """Pids of a job's processes by their number."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            words = (file.parent / "cmdline").read_text().split("\0")
            told = dict(w.partition("=")[::2] for w in file.read_text(errors="replace").split("\0"))
            if told.get("SLURM_JOB_ID") == job and "submitit.core._submit" in words[1:4]:
                found[int(told["SLURM_PROCID"])] = int(file.parent.name)
    return found
