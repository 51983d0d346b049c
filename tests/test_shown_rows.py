"""Rows as trained on: what `kava data check --debug` shows is what the loss reads."""

import itertools
import json

import pytest
import tiny

from kava.reasoning.methods import _base
from kava.recipe import registry
from kava.training.shown_rows import sequences, show_rows
from kava.types import Example

ROWS = [tiny.stepped(3, (2, 3)), tiny.stepped(5, (2,), seed=1), tiny.stepped(4, (3, 2, 2), seed=2)]


def labels(rows):
    """Each row's labels in order, and that each is the token of the next real column."""
    for columns in rows:
        real = [one for one in columns if one.real]
        assert all(one.label is None for one in columns if not one.real)
        for one, after in itertools.pairwise(real):
            assert one.label in (None, after.token), (one, after)
        assert real[-1].label is None and real[-1].span == "answer"
        yield from (one.label for one in columns if one.label is not None)


@pytest.mark.parametrize("method", registry.names("methods"))
def test_labels_are_those_of_the_cross_entropies_of_the_step(method, monkeypatch):
    reasoner, seen = tiny.reasoner(method=method), []
    real = _base.cross_entropy

    def spy(reasoner, states, ids, count):
        seen.append([repr(reasoner.tokenizer.decode([token])) for token in ids.tolist()])
        return real(reasoner, states, ids, count)

    monkeypatch.setattr(_base, "cross_entropy", spy)
    shown = sequences(reasoner, ROWS)
    assert sorted(map(list, map(labels, shown.values()))) == sorted(seen)


@pytest.mark.parametrize("method", registry.names("methods"))
def test_the_spans_are_those_of_the_method(method):
    reasoner = tiny.reasoner(method=method)
    shown = sequences(reasoner, ROWS)
    for name, rows in shown.items():
        for columns, row in zip(rows, reasoner.encoder.rows(ROWS), strict=True):
            spans = [one.span for one in columns if one.real]
            assert spans.count("question") == len(row.question), name
            assert spans.count("answer") == len(row.answer), name
            latents = reasoner.recipe.num_latents if name == "student" else 0
            assert spans.count("latent") == latents
            assert spans.count("<bot>") == spans.count("<eot>") == bool(latents)
            if name == "teacher" or method == "cot":
                assert spans.count("step 1") == row.step_of.count(0)
                assert spans.count("step 3") == row.step_of.count(2)
        assert len({len(columns) for columns in rows}) == 1 and len(rows) == len(ROWS)


def test_hostile_text_is_escaped():
    rows = [Example("\x1b[2J\nrow", "w1", ("<< 1",), "7")]
    reasoner = tiny.reasoner()
    reasoner.tokenizer.decode = lambda ids: "\x1b]0;t\x07\n\u202e"
    text = "\n".join(show_rows(reasoner, rows))
    assert not {"\x1b", "\x07", "\u202e"} & set(text) and "\\x1b[2J\\nrow" in text
    assert "\\x1b]0;t\\x07\\n\\u202e" in text


def test_the_command(kava, backbone, tmp_path):
    row = {"question": "2 + 3?", "steps": ["<<2+3=5>>", "<<5*1=5>>"], "answer": "5"}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 5, encoding="utf-8")
    tree = {
        "method": "kava", "backbone": str(backbone), "num_latents": 2, "lora": {"r": 2},
        "kv": {"weight": 1}, "data": {"train": "x"}, "train": {"steps": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(tree), encoding="utf-8")
    status, said = kava("data", "check", tmp_path / "rows.jsonl", "--debug", tmp_path / "r.yaml")
    assert status == 0, said
    assert said.out.count("student: ") == said.out.count("teacher: ") == 3
    assert "step 1" in said.out and "step 2" not in said.out, "drop_last_step"
    for words in ((), ("--against", "gsm8k", "--debug", tmp_path / "r.yaml")):
        status, said = kava("data", "check", tmp_path / "rows.jsonl", *words)
        assert (status, said.code) == (2, "cli.against-or-debug")
    for words in (
        ("--json",),
        ("--strict",),
        ("--option", "form=natural"),
        ("--against-file", "x"),
    ):
        more = ("--debug", tmp_path / "r.yaml", *words)
        status, said = kava("data", "check", tmp_path / "rows.jsonl", *more)
        assert (status, said.code, said.key) == (2, "cli.not-with-debug", words[0])
