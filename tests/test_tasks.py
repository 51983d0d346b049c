"""Tasks: what is loaded, from where, and what is refused."""

import json
from pathlib import Path

import pytest

from kava.errors import KavaError
from kava.tasks import load_task

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="real data (../shared/data) is not here"
)
PUBLISHED = {
    "question": "How many?",
    "answer": "16 - 3 = <<16-3=13>>13 eggs.\nTimes 100 is $<<13*100=1300>>1300.\n#### 1,300",
}


def test_wrong_names():
    with pytest.raises(KavaError, match="unknown task 'gsm8'; did you mean 'gsm8k'"):
        load_task("gsm8")
    with pytest.raises(KavaError, match="'max_step'; did you mean 'max_steps'"):
        load_task("synthetic", options={"max_step": 2})
    with pytest.raises(KavaError, match="unknown option of task gsm8k: 'seed'"):
        load_task("gsm8k", options={"seed": 1})
    with pytest.raises(KavaError, match="limit must be at least 1"):
        load_task("gsm8k", limit=0)


def test_gsm8k_as_published(tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(PUBLISHED) + "\n")
    (example,) = load_task("gsm8k", file=str(file), limit=5).examples
    assert example.steps == ("16 - 3 = 13 eggs.", "Times 100 is $1300.")
    assert (example.id, example.answer) == ("gsm8k-test-0", "1300")
    with pytest.raises(KavaError, match="has 1 rows and GSM8K test has 1,319; set a limit"):
        load_task("gsm8k", file=str(file))


def test_gsm8k_from_the_hub(monkeypatch):
    calls = []

    def load_dataset(*args, split):
        calls.append((*args, split))
        return [PUBLISHED] * 1319

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("kava.hub.reachable", lambda name, kind: True)
    task = load_task("gsm8k")
    assert calls == [("openai/gsm8k", "main", "test")] and len(task.examples) == 1319
    assert (task.name, task.version, task.split) == ("gsm8k", 1, "test")


@needs_real_data
def test_gsm8k_from_the_real_file():
    task = load_task("gsm8k", file=str(SHARED / "gsm8k_test.jsonl"))
    assert len(task.examples) == 1319 and task.examples[0].answer == "18"
    assert len({e.id for e in task.examples}) == 1319


def test_synthetic():
    task = load_task("synthetic", options={"count": 20, "seed": 3, "max_steps": 2})
    assert len(task.examples) == 20 and task.split == "test"
    assert task.source == "kava.data.synthetic (seed=3, max_steps=2)"
    assert (
        load_task("synthetic", limit=5, options={"seed": 3, "max_steps": 2}).examples[0]
        == (task.examples[0])
    )
    with pytest.raises(KavaError, match="makes its own problems"):
        load_task("synthetic", file="a.jsonl")
    with pytest.raises(KavaError, match="synthetic: "):
        load_task("synthetic", limit=1, options={"max_steps": 0})
