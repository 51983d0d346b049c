"""What a result says of the command that made it: nothing that is not to be published."""

import subprocess
import sys
from pathlib import Path

import pytest

from kava import __main__ as kava_main
from kava.sweeps.attempt import Run, Scoring
from kava.sweeps.slurm import JobWork
from kava.system.environment import command

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def called(monkeypatch):
    """`command()` of a program with these words, for somebody whose home is /srv/mia."""
    monkeypatch.setenv("HOME", "/srv/mia")

    def call(program, *words):
        monkeypatch.setattr(sys, "argv", [str(program), *words])
        return command()

    return call


@pytest.mark.parametrize(
    "program,shown",
    (
        ("kava", "kava"), ("/usr/bin/kava", "kava"), (kava_main.__file__, "kava"),
        (ROOT / "benchmarks" / "gpu_first.py", "python benchmarks/gpu_first.py"),
    ),
)  # fmt: skip
def test_the_words_of_kava_are_told(called, program, shown):
    assert called(program, "train", "a b.yaml", "seed=1") == f"{shown} train 'a b.yaml' seed=1"


@pytest.mark.parametrize("program", ("service.py", "/opt/mia/train", "-c", "", "gpu.py"))
def test_the_words_of_another_program_are_not(called, program):
    assert called(program, "--hf-token", "hf_abc", "customer-7") == "called from Python"


@pytest.mark.processes
def test_nor_are_those_of_a_script_that_imports_kava(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from kava.system.environment import provenance\nprint(provenance()['command'])\n"
    )
    words = [sys.executable, script, "--customer", "7"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "called from Python\n"


@pytest.mark.parametrize(
    "words,shown",
    (
        (("--api-key", "s3"), "--api-key '***'"),
        (("--api-key=s3 4",), "'--api-key=***'"),
        (("--password", "--s3", "-o", "x"), "--password '***' -o x"),
        (("--hf-token", "s3"), "--hf-token '***'"),
        (("--HF_TOKEN=s3",), "'--HF_TOKEN=***'"),
        (("token=s3",), "'token=***'"),
        (("--x-key=s3",), "'--x-key=***'"),
        (("data.options.api_key=s3, 3s",), "'data.options.api_key=***'"),
        (("data.options={token: s3, split: b}",), "'data.options={token: ***, split: b}'"),
        (('data.options={"secret": "s 3"}',), "'data.options={\"secret\": ***}'"),
        (("backbone=https://mia:s3@host/m",), "'backbone=https://***@host/m'"),
        (("description=hf_" + "s3" * 16,), "'description=***'"),
    ),
)  # fmt: skip
def test_secrets_are_covered(called, words, shown):
    assert called("kava", "train", *words) == f"kava train {shown}"


def test_what_only_looks_a_little_like_a_secret_is_told(called):
    words = ("--max-new-tokens", "64", "kv.keys=pre_rope", "data.train=monkey", "train.steps=1")
    assert called("kava", *words) == f"kava {' '.join(words)}"


@pytest.mark.parametrize(
    "word,shown",
    (
        ("/srv/mia/r.yaml", "~/r.yaml"),
        ("/srv/mia/my runs", "~/'my runs'"),
        ("--file=/srv/mia/r", "'--file=~/r'"),
        ("data.leak_files={a: /srv/mia/r}", "'data.leak_files={a: ~/r}'"),
        ("/srv/mia", "'~'"),
        ("/srv/mia2/r", "/srv/mia2/r"),
        ("/data/srv/mia/r", "/data/srv/mia/r"),
    ),
)
def test_the_home_folder_is_not_named(called, word, shown):
    assert called("kava", word) == f"kava {shown}"


def test_a_job_takes_along_what_may_be_told(monkeypatch, tmp_path):
    from kava.reasoning.resolve import validate_resolved

    tree = {
        "method": "kava", "backbone": "b", "data": {"train": "t"},
        "train": {"steps": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    run = Run("a", validate_resolved(tree, "a"), tmp_path)
    monkeypatch.setattr(sys, "argv", ["kava", "sweep", "--hf-token", "s3"])
    assert JobWork.from_run(run, Scoring((), (), None)).words == ("sweep", "--hf-token", "***")
    monkeypatch.setattr(sys, "argv", ["service.py", "--customer", "7"])
    assert JobWork.from_run(run, Scoring((), (), None)).words is None
