"""From real rows to a score, shortened: a backbone, KaVa on it, real test questions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no ../shared/data: the project ships no rows of others"
)
SHORT = ["train.steps=3", "train.batch_size=8", "train.log_every=1", "eval.every=3",
         "data.train_rows=200", "data.validation_rows=8"]  # fmt: skip


def kava(*words, folder):
    done = subprocess.run(
        [sys.executable, "-m", "kava", *map(str, words)],
        capture_output=True, text=True, cwd=folder, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pretrain_train_eval_on_real_rows(tmp_path):
    rows = [f"data.train={SHARED / 'gsm8k_aug_train_subset.jsonl'}",
            f"data.validation={SHARED / 'gsm8k_aug_valid.jsonl'}"]  # fmt: skip
    kava("pretrain", "recipes/gsm8k_small/backbone.yaml", *rows, *SHORT,
         "-o", "backbone", folder=tmp_path)  # fmt: skip
    kava("train", "recipes/gsm8k_small/kava.yaml", "backbone=backbone", *rows, *SHORT,
         "-o", "run", folder=tmp_path)  # fmt: skip
    terms = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "student_ce", "teacher_ce", "codi", "kv"} <= terms.keys()
    said = kava("eval", "run", "--task", "gsm8k", "--file", SHARED / "gsm8k_test.jsonl",
                "--limit", 20, folder=tmp_path)  # fmt: skip
    assert "gsm8k: " in said and "% of 20" in said
    predictions = (tmp_path / "run" / "predictions" / "gsm8k.jsonl").read_text().splitlines()
    assert len(predictions) == 20 and json.loads(predictions[0])["answer"] == "18"
