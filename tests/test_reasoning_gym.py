"""Problems made by reasoning-gym, in the environment of `make test-extras`."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused
from tiny import reasoner

from kava.data import gsm_symbolic, load_examples, note_on_related
from kava.data.tasks import load_task
from kava.evaluation.score import score_run

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_gym = pytest.mark.skipif(
    not INSTALLED, reason="reasoning-gym is not installed: make test-extras"
)


@pytest.mark.skipif(INSTALLED, reason="reasoning-gym is installed")
@pytest.mark.parametrize("name", ["gsm_symbolic", "reasoning_gym"])
def test_where_it_is_missing_one_line_says_how_to_install_it(name):
    key = "gsm_symbolic" if name == "gsm_symbolic" else "chain_sum"
    with refused("data.gym-not-installed", key) as caught:
        load_task(name, limit=3)
    assert "[gym]" in str(caught.value)


@pytest.mark.parametrize("options", [{"split": "dev"}, {"split": "train", "templates": "unseen"}])
def test_a_split_that_does_not_exist_is_refused(options):
    with pytest.raises(ValueError, match="split"):
        gsm_symbolic.generate(count=1, **options)


def test_a_file_of_its_rows_is_read_without_it(tmp_path):
    row = {"question": "How many?", "steps": ["3 + 4 = 7"], "answer": "7", "template": 16}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    task = load_task("gsm_symbolic", file=str(tmp_path / "rows.jsonl"))
    assert [(one.answer, one.extra["template"]) for one in task.examples] == [("7", "16")]
    options = {"templates": "unseen"}
    unseen = load_task("gsm_symbolic", file=str(tmp_path / "rows.jsonl"), options=options)
    assert (task.name, unseen.name) == ("gsm_symbolic", "gsm_symbolic-unseen")


def test_a_score_on_gsm8k_says_what_the_training_was_made_from(tmp_path):
    thinker = reasoner("llama", "no_cot", data={"train": "gsm_symbolic", "train_rows": 5})
    for name in ("gsm8k", "svamp"):
        file = tmp_path / "rows.jsonl"
        file.write_text('{"question": "w1 w2", "answer": "7"}\n')
        score_run(thinker, load_task(name, file=str(file), limit=1), tmp_path, timed_alone=0)
    scores = json.loads((tmp_path / "result.json").read_text())["scores"]
    assert ("note" in scores["gsm8k"], "note" in scores["svamp"]) == (True, False)
    assert note_on_related("rows.jsonl", "gsm8k") is None


@needs_gym
def test_splits_and_templates_are_apart():
    made = {
        split: load_examples("gsm_symbolic", split, limit=200)
        for split in ("train", "validation", "test")
    }
    unseen = load_examples("gsm_symbolic", "test", limit=100, options={"templates": "unseen"})
    questions = [e.question for examples in (*made.values(), unseen) for e in examples]
    assert len(set(questions)) == len(questions) == 700
    seen = {int(e.extra["template"]) for examples in made.values() for e in examples}
    held_out = {int(e.extra["template"]) for e in unseen}
    assert held_out <= gsm_symbolic.UNSEEN and not seen & gsm_symbolic.UNSEEN
    assert len(held_out) == 15 and len(seen) > 60 and not (seen | held_out) & gsm_symbolic._WRONG
    for example in (*made["train"], *unseen):
        numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", example.steps[-1])
        assert example.answer in {n.replace(",", "") for n in numbers} or len(example.steps) > 1


@needs_gym
def test_limits_hold():
    options = {"num_templates": 8, "max_number": 200}
    examples = load_examples("gsm_symbolic", "train", limit=30, options=options)
    assert len({e.extra["template"] for e in examples}) <= 8
    text = " ".join(" ".join((e.question, *e.steps, e.answer)) for e in examples)
    assert max(float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text)) <= 200
    for wrong in ({"num_templates": 0}, {"num_templates": 67}, {"templates": "all"}):
        with refused("data.bad-option", "gsm_symbolic"):
            load_examples("gsm_symbolic", "test", limit=1, options=wrong)


@needs_gym
@pytest.mark.processes
def test_the_same_problems_in_every_process():
    code = (
        "from kava.data import load_examples, rows_hash\n"
        "print(rows_hash(load_examples('gsm_symbolic', 'test', limit=50)))"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(hashes) == 1


@needs_gym
@pytest.mark.skipif(not SHARED.is_dir(), reason="real data (../shared/data) is not here")
def test_the_held_out_templates_are_those_of_the_given_rows():
    lines = (SHARED / "gsm_symbolic_test_unseen_templates.jsonl").read_text().splitlines()
    assert {json.loads(line)["template"] for line in lines} == gsm_symbolic.UNSEEN


@needs_gym
def test_any_generator_is_a_task():
    options = {"name": "chain_sum", "min_terms": 2, "max_terms": 2, "seed": 3}
    task = load_task("reasoning_gym", limit=20, options=options)
    assert task.name == "reasoning_gym-chain_sum" and len(task.examples) == 20
    for example in task.examples:
        sides = re.search(r"(-?\d+) ([+-]) (-?\d+)", example.question).groups()
        assert int(example.answer) == eval("".join(sides))
    again = load_task("reasoning_gym", limit=20, options=options)
    assert [e.question for e in again.examples] == [e.question for e in task.examples]
    for code, key, wrong in (
        ("data.unknown-generator", "chain_sums", {"name": "chain_sums"}),
        ("data.bad-option", "task reasoning_gym-chain_sum", {"max_term": 3}),
        ("data.bad-option", "task reasoning_gym-chain_sum", {"min_terms": -1}),
    ):
        with refused(code, key):
            load_task("reasoning_gym", limit=2, options=wrong)
