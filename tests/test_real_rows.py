"""From real rows to a score, shortened: a backbone, KaVa on it, real test questions."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from kava.data import load_examples, rows_hash

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no ../shared/data: the project ships no rows of others"
)
SHORT = ["train.steps=3", "train.batch_size=8", "train.log_every=1", "eval.every=3",
         "data.train_rows=200", "data.validation_rows=8"]  # fmt: skip


def test_pretrain_train_eval_on_real_rows(tmp_path, kava, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"data.train={SHARED / 'gsm8k_aug_train_subset.jsonl'}",
            f"data.validation={SHARED / 'gsm8k_aug_valid.jsonl'}"]  # fmt: skip
    words = ("recipes/gsm8k_small/backbone.yaml", *rows, *SHORT, "-o", "backbone")
    status, said = kava("pretrain", *words)
    assert status == 0, said
    words = ("recipes/gsm8k_small/kava.yaml", "backbone=backbone", *rows, *SHORT, "-o", "run")
    status, said = kava("train", *words)
    assert status == 0, said
    terms = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "student_ce", "teacher_ce", "codi", "kv"} <= terms.keys()
    words = ("--task", "gsm8k", "--file", SHARED / "gsm8k_test.jsonl", "--limit", 20)
    status, said = kava("eval", "run", *words)
    assert status == 0 and "gsm8k: " in said.out and "% of 20" in said.out
    predictions = (tmp_path / "run" / "predictions" / "gsm8k.jsonl").read_text().splitlines()
    assert len(predictions) == 20 and json.loads(predictions[0])["answer"] == "18"


def test_the_page_of_results_says_which_rows_were_used():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+\.jsonl) \| ([\d,]+) \| `(\w{64})` \|", text, re.MULTILINE)
    for name, count, digest in rows:
        content = (SHARED / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), content.count(b"\n")) == (
            digest,
            int(count.replace(",", "")),
        )
    listed = {name for name, *_ in rows}
    for file in (ROOT / "results" / "gsm8k_small").rglob("*"):
        if file.suffix in (".json", ".yaml"):
            told = file.read_text(encoding="utf-8")
            assert "../" not in told and set(re.findall(r"\w+\.jsonl", told)) <= listed, file
    for name in ("gsm8k_aug_train_subset", "gsm8k_aug_valid"):
        assert rows_hash(load_examples(str(SHARED / f"{name}.jsonl"), "train")) in text


def test_the_rows_can_be_made_again_as_the_page_says():
    """The first of GSM8k-Aug, then GSM8K's own without the validation rows and repetitions."""

    def read(name):
        lines = (SHARED / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    used, validation = read("gsm8k_aug_train_subset.jsonl"), read("gsm8k_aug_valid.jsonl")
    seen = {row["question"] for row in (*used[:3000], *validation)}
    made, left_out = [], 0
    for row in read("gsm8k_train.jsonl"):
        question = " ".join(row["question"].split())
        left_out += question in seen
        if question not in seen:
            made.append((question, row["cot_eq"], row["answer"]))
    assert made == [(row["question"], row["cot"], row["answer"]) for row in used[3000:]]
    assert left_out == 500 + 58
