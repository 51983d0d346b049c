"""Loading examples: every form gives the same rows, every bad input one clear line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Table

from kava.data import data_sets, gsm8k_aug, is_file, load_examples
from kava.errors import KavaError

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="real data (../shared/data) is not here"
)
ROW = {"question": "How many?", "steps": ["<<1+1=2>>"], "answer": "2"}


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def refuses(match, source, *args, **kwargs):
    """The load is refused, in one line that matches."""
    with pytest.raises(KavaError, match=match) as caught:
        load_examples(source, *args, **kwargs)
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
    refuses(
        "line 1: no field 'se'; the row has: question, cot, eq", source, options={"steps": "se"}
    )
    refuses("unknown option of .*'step'; did you mean 'steps'", source, options={"step": "eq"})
    refuses("unknown option of .*'limit'", source, options={"limit": 1})


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
    refuses("b.parquet, row 1: no field 'steps' or 'cot'", str(tmp_path / "b.parquet"))
    refuses("not a readable Parquet file", write(tmp_path / "c.parquet", "text"))


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


BAD_ROWS = {
    "a.jsonl, line 2: no field 'answer'; the row has: question, steps": {
        "question": "",
        "steps": [],
    },
    "line 2: no field 'steps' or 'cot'": {"question": "q", "answer": "1"},
    "line 2: no field 'question'; the row has: none": {},
    "line 2: broken JSON": '{"question": ',
    "line 2: broken JSON .NaN": '{"question": "q", "steps": [], "answer": NaN}',
    "line 2: not a JSON object but": "[1]",
    "line 2: the line is empty": "",
    "line 2: 'question' must be": {**ROW, "question": " "},
    "line 2: 'steps' must be a list of texts, not '<<1": {**ROW, "steps": "<<1+1=2>>"},
    "line 2: 'steps' must be a list of texts, not None": {**ROW, "steps": None},
    "line 2: 'steps' must be a list of texts, not .1.": {**ROW, "steps": [1]},
    "line 2: 'answer' must be a number or a text, not None": {**ROW, "answer": None},
    "line 2: 'answer' must be .* not True": {**ROW, "answer": True},
    "line 2: 'answer' must be .* not ' '": {**ROW, "answer": " "},
    "line 2: id 'a-0' is already that of .*line 1": {**ROW, "id": "a-0"},
}


@pytest.mark.parametrize(("match", "row"), BAD_ROWS.items())
def test_a_broken_row_is_named(tmp_path, match, row):
    refuses(match, write(tmp_path / "a.jsonl", ROW, row, {**ROW, "id": "last"}))


def test_a_broken_line_is_named(tmp_path):
    refuses(r"a.txt, line 2: no '\|\|'", write(tmp_path / "a.txt", "q||#### 1", "q #### 1"))
    refuses("line 1: no '####'", write(tmp_path / "a.txt", "q|| 1"))
    refuses("line 1: 'answer' must", write(tmp_path / "a.txt", "q|| ####"))
    (tmp_path / "b.txt").write_bytes(b"q||#### 1\ncaf\xe9||#### 2\n")
    refuses("b.txt, line 2: not UTF-8 .byte 4 is 0xe9", str(tmp_path / "b.txt"))


def test_marks_and_line_ends_of_other_systems(tmp_path):
    text = json.dumps({**ROW, "question": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"\ufeff{text}\r\n{text}\r\n".encode())
    assert [e.question for e in load_examples(str(tmp_path / "a.jsonl"))] == ["a\u2028b"] * 2


def test_a_wrong_source_is_named(tmp_path):
    refuses("unknown data set 'sinthetic'; did you mean 'synthetic'", "sinthetic")
    refuses("nowhere.jsonl: no such file", "nowhere.jsonl")
    refuses("data/train.csv: no such file", "data/train.csv")
    refuses("here/it/is: no such file", "./here/it/is")
    refuses("is a folder; give one file", str(tmp_path))
    refuses("must end in one of .jsonl, .json", write(tmp_path / "a.csv", "x"))
    refuses("holds no rows", write(tmp_path / "a.jsonl", ""))
    refuses("limit must be at least 1, not 0", "synthetic", limit=0)
    assert not is_file("owner/name-v1.5") and is_file("~/rows.txt")


def test_synthetic():
    assert {"synthetic", "gsm8k_aug"} <= set(data_sets()) and "files" not in data_sets()
    examples = load_examples("synthetic", "validation", limit=4, options={"seed": 1})
    assert len(examples) == 4
    refuses("say how many rows", "synthetic")
    refuses("say how many rows", "synthetic", options={"count": "many"})
    refuses("did you mean 'max_steps'", "synthetic", limit=1, options={"max_step": 2})
    refuses("synthetic: ", "synthetic", "nowhere", limit=1)


class Hub:
    """Stands in for `datasets.load_dataset`."""

    def __init__(self, monkeypatch, rows):
        import datasets

        self.rows, self.calls = rows, []
        monkeypatch.setattr(datasets, "load_dataset", self)
        monkeypatch.setattr("kava.system.hub.reachable", lambda name, kind: True)

    def __call__(self, *args, **kwargs):
        self.calls.append((*args, kwargs["split"]))
        if isinstance(self.rows, Exception):
            raise self.rows
        return Table(self.rows)


def test_hub(monkeypatch):
    hub = Hub(monkeypatch, [{**ROW}, {**ROW, "answer": None}])
    (example,) = load_examples("owner/name", "test", limit=1, options={"config": "main"})
    assert example.id == "name-test-0" and hub.calls == [("owner/name", "main", "test")]
    refuses("owner/name, split train, row 2: 'answer' must", "owner/name")


def test_hub_failure_says_what_to_do(monkeypatch):
    Hub(monkeypatch, ConnectionError("gated\nand more"))
    refuses(r"\(gated\); .*`hf auth login`.*licence.*datasets/a/b.*data.train=FILE", "a/b")


def test_unreachable_hub_is_refused_at_once(monkeypatch):
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr("kava.system.hub.reachable", lambda name, kind: False)
    refuses("cannot load split 'train' of 'kava-no/such'", "kava-no/such")
    assert datasets.config.HF_HUB_OFFLINE is before


def test_gsm8k_aug(monkeypatch, tmp_path):
    hub = Hub(monkeypatch, [ROW] * 500)
    assert len(load_examples("gsm8k_aug", "validation")) == 500
    assert len(load_examples("gsm8k_aug", limit=3, options={"form": "natural"})) == 3
    assert [call[0] for call in hub.calls] == ["whynlp/gsm8k-aug", "whynlp/gsm8k-aug-nl"]
    refuses("has 500 rows and GSM8k-Aug train has 385,620", "gsm8k_aug")
    refuses("did you mean 'natural'", "gsm8k_aug", options={"form": "naturel"})
    refuses("did you mean 'validation'", "gsm8k_aug", "valid")
    file = write(tmp_path / "a.jsonl", ROW)
    refuses("a.jsonl has 1 rows and GSM8k-Aug test has 1,319", "gsm8k_aug", "test",
            options={"file": file})  # fmt: skip


@needs_real_data
def test_gsm8k_aug_from_a_file():
    assert len(gsm8k_aug.load("test", file=SHARED / "gsm8k_aug_test.txt")) == 1319


def test_import_is_light():
    code = (
        "import sys, kava.data, kava.data.tasks; from kava.evaluation import answers;"
        "print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
