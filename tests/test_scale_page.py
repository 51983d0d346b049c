"""docs/scale.md: its tables and its words are those of the committed results."""

import json
import shutil
from pathlib import Path

import pytest

from tools import readme, scale

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "results" / "bench"
checkout = pytest.mark.skipif(not BENCH.is_dir(), reason="part of a checkout only")


@checkout
def test_the_page_has_the_steps_of_a_gpu_as_soon_as_they_are_measured(tmp_path):
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    shutil.copytree(BENCH, tmp_path / "results/bench", ignore=shutil.ignore_patterns("gpu"))
    before = readme.filled(text, tmp_path, "docs/scale.md")
    assert "nothing is measured yet" in before
    (tmp_path / "results/bench/gpu").mkdir()
    tree = json.loads((BENCH / "train.json").read_text(encoding="utf-8"))
    tree |= {
        "recipes": {name: {**one, "adapter": "lora"} for name, one in tree["recipes"].items()},
        "machine": {"accelerator": "NVIDIA H200"},
        "shapes": dict.fromkeys(tree["recipes"], "llama-3.2-1b"),
    }
    (tmp_path / "results/bench/gpu/train.json").write_text(json.dumps(tree), encoding="utf-8")
    other = json.dumps({**tree, "rows": {}})
    (tmp_path / "results/bench/gpu/generate.json").write_text(other, encoding="utf-8")
    after = readme.filled(text, tmp_path, "docs/scale.md")
    assert "nothing is measured yet" not in after
    assert "| `kava`, lora | llama-3.2-1b | 32 of 32 | 1,008 | 1.043 | 67 % | 1.5 GB |" in after


@checkout
def test_the_matrix_of_the_paper_is_whole():
    for name, recipes, runs in (("matrix_paper", 6, 18), ("matrix_methods", 48, 48)):
        found = scale.read(ROOT, name)
        assert len(found["recipes"]) == recipes and found["totals"]["runs"] == runs
        assert "+" not in found["commit"]
        rows = found["recipes"].values()
        total = sum(len(row["runs"]) * row["flops_least"] for row in rows)
        assert total == found["totals"]["flops_least"]


@checkout
def test_what_the_page_says_of_the_measurements_in_words():
    text = " ".join((ROOT / "docs/scale.md").read_text(encoding="utf-8").split())
    for name in ("predecessors", "train", "train_grouped", "generate", "growth"):
        told = scale.read(ROOT, name)
        assert told["machine"]["processor"] == "AMD EPYC", name
        assert (told["machine"]["cores"], told["machine"]["threads"]) == (2, 2), name
        if "lengths" in told:
            assert told["lengths"] == {
                "question": [59, 70], "reasoning": [41, 41], "answer": [8, 8], "steps": 3,
            }  # fmt: skip
    assert "two cores of an AMD EPYC, with two threads" in text
    assert "questions of 59 to 70 tokens, reasoning of 41, M 24, T 3, 32 examples" in text
    growth = scale.read(ROOT, "growth")
    assert f"batch {growth['base']['batch']}" in text
    answers = scale.read(ROOT, "generate")["rows"]
    assert {row["generated_tokens"] for row in answers["cot"]} == {49}
    assert {row["generated_tokens"] for row in answers["kava"]} == {4}
    assert f"{scale.read(ROOT, 'predecessors')['repeats']} rounds" in text
