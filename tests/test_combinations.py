"""The page of what combines with what: from what tests ran, and no more."""

import json
from pathlib import Path

import combinations
import pytest
import torch
from refusals import refused
from tiny import batch, example, reasoner
from transformers import T5Config

from kava.backbones import compatibility
from kava.reasoning.reasoner import Reasoner
from tools import combinations as tool

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    for owner, name in (
        (Reasoner, "forward"), (Reasoner, "_generate_tokens"),
        (compatibility, "check_config"), (compatibility, "check"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))  # so that they are restored
    combinations.record(tmp_path / "run")
    return tmp_path / "run"


def test_only_what_came_to_its_end_is_recorded(run):
    thinker = reasoner("qwen3", "kava")
    with pytest.raises(KeyError):
        thinker(nothing=3)
    assert combinations.read(run) == set()
    thinker(**batch(thinker, [example(3, 4)]))
    step = ("kava", "qwen3", "full", "fp32", "1")
    assert combinations.read(run) == {("trained", *step)}
    thinker.generate("w1 w2", max_new_tokens=2)
    thinker.generate("w1 w2 w3", max_new_tokens=2)
    with refused("backbones.encoder-decoder", "t5"):
        compatibility.check_config(T5Config())
    assert combinations.read(run) == {
        ("trained", *step), ("answered", *step), ("refused", "backbones.encoder-decoder", "t5"),
    }  # fmt: skip


def test_precision_is_that_of_the_step(run):
    thinker = reasoner("llama", "cot")
    with torch.autocast("cpu", torch.bfloat16):
        thinker(**batch(thinker, [example(3, 4)]))
    thinker.to(torch.bfloat16).generate("w1", max_new_tokens=1)
    assert {one[4] for one in combinations.read(run)} == {"bf16 autocast", "bf16 weights"}


def test_the_page_is_that_of_the_stored_combinations():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(json.loads(tool.STORED.read_text()))


def test_a_claim_that_no_test_ran_fails_the_check(run, monkeypatch, capsys):
    claimed = json.loads(tool.STORED.read_text())
    lines = "\n".join(map(json.dumps, claimed))
    (run / "other.jsonl").write_text(lines)
    monkeypatch.setattr("sys.argv", ["combinations", str(run), "--check"])
    tool.main()
    (run / "other.jsonl").write_text(lines.partition("\n")[2])
    with pytest.raises(SystemExit, match=" ".join(claimed[0])):
        tool.main()


def test_a_type_that_is_trained_elsewhere_is_not_called_refused():
    found = [
        ["refused", "backbones.no-attention", "llama"], ["refused", "backbones.no-attention", "x"],
        ["trained", "kava", "llama", "full", "fp32", "1"],
        ["trained", "own", "y", "full", "fp32", "1"],
    ]  # fmt: skip
    assert tool._described(found) == found[1:3]
