"""Loading examples: every form gives the same rows, every bad input one clear line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused
from tiny import Table

from kava.data import data_sets, gsm8k_aug, is_path, load_examples

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="real data (../shared/data) is not here"
)
ROW = {"question": "How many?", "steps": ["<<1+1=2>>"], "answer": "2"}


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def refuses(code, key, values, source, *args, **kwargs):
    """The load is refused, in one line that has these values in it."""
    with refused(code, key) as caught:
        load_examples(source, *args, **kwargs)
    for value in values:
        assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def words(example):
    return example.question, example.steps, example.answer


def test_jsonl(tmp_path):
    second = '{"question": "q", "steps": [], "answer": 2.50}'
    named = {**ROW, "id": 7, "cot": ["unused"], "level": 3}
    source = write(tmp_path / "a.jsonl", ROW, second, named, "", "")
    first, second, third = load_examples(source)
    assert words(first) == ("How many?", ("<<1+1=2>>",), "2")
    assert [e.id for e in (first, second, third)] == ["a-0", "a-1", "7"]
    assert (second.steps, second.answer) == ((), "2.50")
    assert third.extra == {"cot": '["unused"]', "level": "3"}
    assert load_examples(source, limit=2) == [first, second]
    assert load_examples(source, limit=9) == [first, second, third]


def test_cot_and_a_named_steps_field(tmp_path):
    row = {"question": "q", "cot": ["one"], "eq": ["<<1=1>>", "<<2=2>>"], "answer": "1,234.5"}
    source = write(tmp_path / "a.json", row)
    assert load_examples(source)[0].steps == ("one",)
    assert load_examples(source)[0].answer == "1234.5"
    assert load_examples(source, options={"steps": "eq"})[0].steps == ("<<1=1>>", "<<2=2>>")
    there = "line 1: ", "'se'", "question, cot, eq"
    refuses("data.missing-field", "se", there, source, options={"steps": "se"})
    refuses("data.unknown-option", "step", ["'steps'?"], source, options={"step": "eq"})
    refuses("data.unknown-option", "limit", [], source, options={"limit": 1})


@pytest.mark.filterwarnings("default")  # not this project's: whatever pyarrow deprecates
def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{**ROW, "id": None, "answer": 18.0}, {**ROW, "id": "b", "answer": 0.5}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    examples = load_examples(str(tmp_path / "a.parquet"))
    assert [(e.id, e.answer) for e in examples] == [("a-0", "18"), ("b", "0.5")]
    assert words(examples[0])[:2] == ("How many?", ("<<1+1=2>>",))
    parquet.write_table(pyarrow.table({"question": ["q"], "answer": ["1"]}), tmp_path / "b.parquet")
    there = "b.parquet, row 1: ", "'steps'", "'cot'"
    refuses("data.missing-field", "cot", there, str(tmp_path / "b.parquet"))
    text = write(tmp_path / "c.parquet", "text")
    refuses("data.bad-parquet", text, [], text)


def test_one_line_form(tmp_path):
    lines = [
        "a  b?||<<16-3=13>> <<9*2=18>> #### 1,018",
        "q||#### 18",
        "q||  #### .5",
        "x||y||#### 1",
    ]
    examples = load_examples(write(tmp_path / "a.txt", *lines))
    assert [words(e) for e in examples] == [
        ("a b?", ("<<16-3=13>>", "<<9*2=18>>"), "1018"),
        ("q", (), "18"),
        ("q", (), ".5"),
        ("x||y", (), "1"),
    ]


@needs_real_data
@pytest.mark.parametrize(("name", "count"), [("test", 1319), ("valid", 500)])
def test_one_line_form_equals_its_jsonl_twin(name, count):
    text = load_examples(str(SHARED / f"gsm8k_aug_{name}.txt"))
    rows = load_examples(str(SHARED / f"gsm8k_aug_{name}.jsonl"))
    assert len(rows) == count
    assert list(map(words, text)) == list(map(words, rows))


@needs_real_data
def test_every_real_file_loads_whole():
    for path in SHARED.glob("*.jsonl"):
        with path.open("rb") as file:
            assert len(load_examples(str(path))) == sum(1 for _ in file)


PLACE = "a.jsonl, line 2"  # what an error is about that is about no field
BAD_ROWS = (
    ({"question": "", "steps": []}, "data.missing-field", "answer", "question, steps"),
    ({"question": "q", "answer": "1"}, "data.missing-field", "cot", "'steps'"),
    ({}, "data.missing-field", "question", "none"),
    ('{"question": ', "data.bad-json", PLACE, ""),
    ('{"question": "q", "steps": [], "answer": NaN}', "data.bad-field", "answer", "not nan"),
    ("[1]", "data.not-an-object", PLACE, "[1]"),
    ("", "data.empty-line", PLACE, ""),
    ({**ROW, "question": " "}, "data.bad-field", "question", "not ' '"),
    ({**ROW, "steps": 7}, "data.bad-field", "steps", "not 7"),
    ({**ROW, "steps": {"a": "b"}}, "data.bad-field", "steps", "not {'a'"),
    ({**ROW, "steps": None}, "data.bad-field", "steps", "not None"),
    ({**ROW, "steps": [1]}, "data.bad-field", "steps", "not [1]"),
    ({**ROW, "answer": None}, "data.bad-field", "answer", "not None"),
    ({**ROW, "answer": True}, "data.bad-field", "answer", "not True"),
    ({**ROW, "answer": " "}, "data.bad-field", "answer", "not ' '"),
    ({**ROW, "id": "a-0"}, "data.repeated-id", "a-0", "line 1"),
)


@pytest.mark.parametrize(("row", "code", "key", "value"), BAD_ROWS)
def test_a_broken_row_is_named(tmp_path, row, code, key, value):
    source = write(tmp_path / "a.jsonl", ROW, row, {**ROW, "id": "last"})
    key = f"{source}, line 2" if key == PLACE else key
    refuses(code, key, [f"{PLACE}: ", value], source)


def test_a_broken_line_is_named(tmp_path):
    source = write(tmp_path / "a.txt", "q||#### 1", "q #### 1")
    refuses("data.not-its-form", f"{source}, line 2", ["a.txt, line 2: ", "'||'"], source)
    source = write(tmp_path / "a.txt", "q|| 1")
    refuses("data.not-its-form", f"{source}, line 1", ["line 1: ", "'####'"], source)
    source = write(tmp_path / "a.txt", "q|| ####")
    refuses("data.bad-field", "answer", ["line 1: "], source)
    (tmp_path / "b.txt").write_bytes(b"q||#### 1\ncaf\xe9||#### 2\n")
    source = str(tmp_path / "b.txt")
    refuses("data.not-utf8", f"{source}, line 2", ["byte 4", "0xe9"], source)


def test_marks_and_line_ends_of_other_systems(tmp_path):
    text = json.dumps({**ROW, "question": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"\ufeff{text}\r\n{text}\r\n".encode())
    assert [e.question for e in load_examples(str(tmp_path / "a.jsonl"))] == ["a\u2028b"] * 2


def test_a_wrong_source_is_named(tmp_path):
    refuses("data.unknown-data-set", "sinthetic", ["'synthetic'?"], "sinthetic")
    refuses("data.no-file", "nowhere.jsonl", [], "nowhere.jsonl")
    refuses("data.no-file", "data/train.csv", [], "data/train.csv")
    refuses("data.no-file", "here/it/is", [], "./here/it/is")
    refuses("data.is-folder", str(tmp_path), [], str(tmp_path))
    source = write(tmp_path / "a.yaml", "x")
    refuses("data.unknown-format", source, [".jsonl, .json"], source)
    source = write(tmp_path / "a.jsonl", "")
    refuses("data.no-rows", source, [], source)
    refuses("data.bad-limit", "limit", ["1, not 0"], "synthetic", limit=0)
    assert not is_path("owner/name-v1.5") and is_path("~/rows.txt")


def test_synthetic():
    assert {"synthetic", "gsm8k_aug", "prontoqa"} <= set(data_sets()) and not {
        "answers",
        "files",
        "rows",
        "shards",
    } & set(data_sets())
    examples = load_examples("synthetic", "validation", limit=4, options={"seed": 1})
    assert len(examples) == 4
    refuses("data.no-count", "count", [], "synthetic")
    refuses("data.no-count", "count", [], "synthetic", options={"count": "many"})
    wrong, hint = {"max_step": 2}, ["'max_steps'?"]
    refuses("data.unknown-option", "max_step", hint, "synthetic", limit=1, options=wrong)
    refuses("data.bad-option", "synthetic", ["'nowhere'"], "synthetic", "nowhere", limit=1)


class Hub:
    """Stands in for `datasets.load_dataset`."""

    def __init__(self, monkeypatch, rows):
        import datasets

        self.rows, self.calls = rows, []
        monkeypatch.setattr(datasets, "load_dataset", self)
        monkeypatch.setattr("kava.system.hub.is_reachable", lambda name, kind: True)

    def __call__(self, *args, **kwargs):
        self.calls.append((*args, kwargs["split"]))
        if isinstance(self.rows, Exception):
            raise self.rows
        return Table(self.rows)


def test_hub(monkeypatch):
    hub = Hub(monkeypatch, [{**ROW}, {**ROW, "answer": None}])
    (example,) = load_examples("owner/name", "test", limit=1, options={"config": "main"})
    assert example.id == "name-test-0" and hub.calls == [("owner/name", "main", "test")]
    there = ["owner/name, split train, row 2: "]
    refuses("data.bad-field", "answer", there, "owner/name")


def test_hub_failure_says_what_to_do(monkeypatch):
    Hub(monkeypatch, ConnectionError("gated\nand more"))
    values = "(gated)", "`hf auth login`", "datasets/a/b", "data.train=FILE"
    refuses("data.not-had", "a/b", values, "a/b")


def test_unreachable_hub_is_refused_at_once(monkeypatch):
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr("kava.system.hub.is_reachable", lambda name, kind: False)
    refuses("data.not-had", "kava-no/such", ["'train'"], "kava-no/such")
    assert datasets.config.HF_HUB_OFFLINE is before


def test_gsm8k_aug(monkeypatch, tmp_path):
    hub = Hub(monkeypatch, [ROW] * 500)
    assert len(load_examples("gsm8k_aug", "validation")) == 500
    assert len(load_examples("gsm8k_aug", limit=3, options={"form": "natural"})) == 3
    assert [call[0] for call in hub.calls] == ["whynlp/gsm8k-aug", "whynlp/gsm8k-aug-nl"]
    name = "whynlp/gsm8k-aug, split train"
    refuses("data.other-row-count", name, ["500", "385,620"], "gsm8k_aug")
    wrong = {"form": "naturel"}
    refuses("data.unknown-form", "naturel", ["'natural'?"], "gsm8k_aug", options=wrong)
    refuses("data.unknown-split", "valid", ["'validation'?"], "gsm8k_aug", "valid")
    file = write(tmp_path / "a.jsonl", ROW)
    counts = ["has 1 rows", "1,319"]
    refuses("data.other-row-count", file, counts, "gsm8k_aug", "test", options={"file": file})


@needs_real_data
def test_gsm8k_aug_from_a_file():
    assert len(gsm8k_aug.load("test", file=SHARED / "gsm8k_aug_test.txt")) == 1319


@pytest.mark.processes
def test_import_is_light():
    code = (
        "import sys, kava.data, kava.data.tasks; from kava.evaluation import answers;"
        "print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
