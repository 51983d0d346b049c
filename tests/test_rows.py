"""Rows in the forms in which data sets are published: every reader reads the same of each."""

import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused
from typer.testing import CliRunner

from kava.cli import app
from kava.data import files, load_examples
from kava.data.rows import split_steps, to_example
from kava.data.tasks import load_task
from kava.errors import KavaError
from kava.evaluation.score_file import score_file
from kava.training.from_rows import as_examples

LINES = "First 16-3=<<16-3=13>>13 pens.\nThen 13*2=<<13*2=26>>26.\n"
STEPS = ("<<16-3=13>>", "<<13*2=26>>")
WORDS = ("First 16-3=13 pens.", "Then 13*2=26.")
EQUATIONS = " ".join(STEPS)
REPLY = f"{EQUATIONS}\n#### 26"
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": REPLY}
PARTS = [{"type": "text", "text": "q"}]
BASE = {"question": "q", "answer": "26"}
SHARE_GPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": REPLY}]
FORMS = {
    "list": ({**BASE, "steps": list(STEPS)}, STEPS),
    "cot": ({**BASE, "cot": list(STEPS)}, STEPS),
    "one text": ({**BASE, "cot": EQUATIONS}, STEPS),
    "touching": ({**BASE, "cot": "".join(STEPS)}, STEPS),
    "lines": ({**BASE, "steps": "a\n\n b "}, ("a", "b")),
    "json": ({**BASE, "steps": json.dumps(STEPS)}, STEPS),
    "no list after all": ({**BASE, "steps": "[1] a\nb"}, ("[1] a", "b")),
    "blank steps": ({**BASE, "steps": ["", *STEPS, " \n"]}, STEPS),
    "only blank": ({**BASE, "steps": [""]}, ()),
    "GSM8K": ({"question": "q", "answer": LINES + "#### 26"}, WORDS),
    "solution too": ({"question": "q", "steps": ["a"], "answer": LINES + "#### 26"}, ("a",)),
    "twice": ({"question": "q", "answer": "a\n#### 26\nThe answer is: 26"}, ("a",)),
    "chat": ({"messages": [USER, ASSISTANT]}, STEPS),
    "parts": ({"messages": [{**USER, "content": PARTS}, ASSISTANT]}, STEPS),
    "ShareGPT": ({"conversations": SHARE_GPT}, STEPS),
    "answer apart": (
        {"messages": [USER, {"role": "assistant", "content": "a"}], "answer": 26}, ("a",),
    ),
    "prompt": ({"prompt": "q", "completion": REPLY}, STEPS),
    "conversational": ({"prompt": [USER], "completion": [ASSISTANT]}, STEPS),
    "marker": ({"prompt": "q", "completion": "a\nThe answer is: 26"}, ("a",)),
    "stepwise": (
        {"prompt": "q", "completions": ["a", "b", "The answer is: 26"], "labels": [True] * 3},
        ("a", "b"),
    ),
    "Alpaca": ({"instruction": "q", "input": "", "output": "a\n#### 26"}, ("a",)),
    "MATH": ({"problem": "q", "answer": "26", "cot": "a"}, ("a",)),
    "ProsQA": ({**BASE, "steps": ["a"], "edges": [[0, 1]], "root": None, "w": math.nan}, ("a",)),
    "tuple": ({**BASE, "steps": STEPS}, STEPS),
    "array": ({**BASE, "steps": np.array(STEPS, dtype=object)}, STEPS),
    "np.int64": ({**BASE, "steps": ["a"], "answer": np.int64(26)}, ("a",)),
    "np.float64": ({**BASE, "steps": ["a"], "answer": np.float64(26)}, ("a",)),
    "np.str_": ({**BASE, "steps": [np.str_("a")], "answer": np.str_("26")}, ("a",)),
    "torch": ({**BASE, "steps": ["a"], "answer": torch.tensor(26)}, ("a",)),
    "pandas": ({**BASE, "steps": ["a"], "id": pd.NA, "other": pd.NaT}, ("a",)),
}  # fmt: skip
OF_PYTHON = {"array", "np.int64", "torch", "pandas"}  # no file holds them


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form):
    row, steps = FORMS[form]
    example = to_example(row, "row", "id", need_steps=True)
    assert (example.id, example.question, example.steps, example.answer) == ("id", "q", steps, "26")


@pytest.mark.parametrize("form", sorted(FORMS.keys() - OF_PYTHON))
def test_every_reader_reads_the_same(form, tmp_path):
    row, steps = FORMS[form]
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    file = str(tmp_path / "a.jsonl")
    (trained,) = load_examples(file)
    assert (trained.question, trained.steps, trained.answer) == ("q", steps, "26")
    assert load_task("rows", file=file).examples == [trained]
    assert load_task("gsm8k", file=file, limit=1).examples[0].steps == steps
    assert as_examples([row], "rows")[0].steps == steps
    (tmp_path / "p.jsonl").write_text('{"prediction": "The answer is: 26"}\n')
    counted = score_file(tmp_path / "p.jsonl", None, file, None, None, {})
    assert counted["correct"]["numeric"] == 1
    done = CliRunner().invoke(app, ["data", "check", file, "--against", "rows", "--file", file])
    assert done.exit_code == 1 and "1 equal one of the 1 of rows-a" in done.stdout


def test_digits_of_numbers_of_numpy():
    exact = ((np.float32(0.1), "0.1"), (np.float64(2.5e-05), "0.000025"), (np.int8(-3), "-3"))
    for value, text in exact:
        assert to_example({**BASE, "steps": [], "answer": value}, "row", "id").answer == text
    for value in (np.float64("nan"), np.bool_(True), np.array([1, 2])):
        with refused("data.bad-field", "answer"):
            to_example({**BASE, "steps": [], "answer": value}, "row", "id")


ANNOTATED = {"remove": WORDS, "keep": tuple(LINES.strip().split("\n")), "only": STEPS}


@pytest.mark.parametrize("annotations", ANNOTATED)
def test_annotations_of_gsm8k(annotations, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": LINES + "#### 26"}))
    (example,) = load_examples(str(file), options={"annotations": annotations})
    assert example.steps == ANNOTATED[annotations]
    assert split_steps(EQUATIONS, annotations) == list(STEPS)
    with refused("data.unknown-option", "all"):
        load_examples(str(file), options={"annotations": "all"})


def test_columns_by_name(tmp_path):
    row = {"task": "q", "question": "not this", "labels": "26", "cot": EQUATIONS, "eq": "a"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    file = str(tmp_path / "a.jsonl")
    options = {"question": "task", "answer": "labels", "steps": "eq"}
    (example,) = load_examples(file, options=options)
    assert (example.question, example.steps, example.answer) == ("q", ("a",), "26")
    assert set(example.extra) == {"question", "cot"}
    assert load_task("rows", file=file, options=options).examples == [example]
    assert as_examples([row], "rows", options)[0].steps == ("a",)
    words = [f"--data-option={key}={value}" for key, value in options.items()]
    words += [f"--option={key}={value}" for key, value in options.items()]
    check = ["data", "check", file, "--against=rows", f"--file={file}", *words]
    done = CliRunner().invoke(app, check)
    assert done.exit_code == 1 and "1 equal" in done.stdout
    for wrong, code, key in (
        ({"question": "tsk"}, "data.missing-field", "tsk"),
        ({"question": 7}, "data.bad-option", "question"),
        ({"questions": "task"}, "data.unknown-option", "questions"),
        ({"need_steps": False}, "data.unknown-option", "need_steps"),
    ):
        with refused(code, key):
            load_examples(file, options=wrong)


PICTURE = {"role": "user", "content": [{"type": "image"}]}
BAD = {
    "no marker": ({"prompt": "q", "completion": "26"}, "data.no-answer", "completion"),
    "two questions": ({"messages": [USER, USER, ASSISTANT]}, "data.bad-chat", "messages"),
    "no reply": ({"messages": [USER]}, "data.bad-chat", "messages"),
    "a tool": ({"messages": [{"role": "tool", "content": "x"}]}, "data.bad-chat", "messages"),
    "a picture": ({"messages": [PICTURE, ASSISTANT]}, "data.bad-chat", "messages"),
    "a wrong step": (
        {"prompt": "q", "completions": ["a", "#### 1"], "labels": [False, True]},
        "data.wrong-step", "labels",
    ),
    "no steps": (BASE, "data.missing-field", "cot"),
    "null steps": ({**BASE, "cot": None}, "data.bad-field", "cot"),
    "empty answer": ({"question": "q", "answer": "a\n####"}, "data.bad-field", "answer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named(case):
    row, code, key = BAD[case]
    with refused(code, key) as caught:
        to_example(row, "a.jsonl, line 1", "id", need_steps=True)
    assert str(caught.value).startswith("a.jsonl, line 1: ") and "\n" not in str(caught.value)


def test_steps_may_be_missing_only_where_nothing_is_trained(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({**BASE, "steps": None}))
    assert load_task("rows", file=str(tmp_path / "a.jsonl")).examples[0].steps == ()


def test_no_error_of_python_for_any_row():
    values = (None, math.nan, 7, [], {}, "", "x", [7], [[]], [{}], np.array([[1]]), b"x")
    fields = ("question", "answer", "steps", "messages", "prompt", "completions", "labels", "id")
    for value in values:
        for field in fields:
            row = {**BASE, "steps": ["a"], "completion": "#### 1", field: value}
            try:
                to_example(row, "row", "id", need_steps=True)
            except KavaError as error:
                assert error.code


# -- files ---------------------------------------------------------------------------------------

ROWS = [{"question": f"q{n}", "steps": ["a"], "answer": str(n)} for n in range(12)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def write_every_kind(folder):
    (folder / "a.ndjson").write_text(TEXT)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    (folder / "list.json").write_text(json.dumps(ROWS))
    (folder / "lines.json").write_text(TEXT)
    (folder / "data.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    indented = json.dumps({"d": ROWS}, indent=1)
    (folder / "indented.json.gz").write_bytes(gzip.compress(indented.encode()))
    table = pd.DataFrame([{**row, "steps": "a"} for row in ROWS])
    table.to_csv(folder / "a.csv", index=False)
    table.to_csv(folder / "a.tsv", index=False, sep="\t")
    pd.DataFrame(ROWS).to_parquet(folder / "a.parquet")


@pytest.mark.filterwarnings("default")  # not this project's: whatever pyarrow deprecates
def test_every_kind_of_file(tmp_path):
    write_every_kind(tmp_path)
    wanted = [(row["question"], ("a",), row["answer"]) for row in ROWS]
    for file in sorted(tmp_path.iterdir()):
        found = load_examples(str(file))
        assert [(e.question, e.steps, e.answer) for e in found] == wanted, file
        assert found[0].id == f"{file.name.split('.')[0]}-0"


@pytest.mark.filterwarnings("default")
def test_several_files_shards_and_folders_of_datasets(tmp_path):
    import datasets

    shards = tmp_path / "shards"
    shards.mkdir()
    for n, row in enumerate(ROWS):
        (shards / f"train-{n}.jsonl").write_text(json.dumps(row) + "\n")
    (shards / "test-0.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (shards / "README.md").write_text("about")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "dict")
    names = ", ".join(f"{shards}/train-{n}.jsonl" for n in range(12))
    sources = (shards, f"{shards}/train-*.jsonl", names, tmp_path / "saved", tmp_path / "dict")
    for source in sources:
        found = [e.answer for e in load_examples(str(source))]
        assert found == [row["answer"] for row in ROWS], source
    for source in (shards, tmp_path / "dict"):
        assert len(load_task("rows", file=str(source)).examples) == 1
        with refused("data.unknown-split", "validation"):
            load_examples(str(source), "validation")
    (shards / "train-x.csv").write_text("question,steps,answer\n")
    with refused("data.is-folder", str(shards)) as caught:
        load_examples(str(shards))
    assert ".csv, .jsonl" in str(caught.value)
    state = tmp_path / "saved" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../dict/train/x.arrow"}]}))
    with refused("data.bad-folder", str(state)):
        load_examples(str(tmp_path / "saved"))


def test_the_nesting_is_named_where_it_is_ambiguous(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"train": ROWS, "dev": ROWS[:1], "about": {"more": ROWS[:2]}}))
    with refused("data.which-field", "field") as caught:
        load_examples(str(file))
    assert "train, dev" in str(caught.value)
    for field, count in (("train", 12), ("dev", 1), ("about.more", 2)):
        assert len(load_examples(str(file), options={"field": field})) == count
    for field, code in (("tran", "data.missing-field"), ("about", "data.bad-field")):
        with refused(code, field):
            load_examples(str(file), options={"field": field})
    file.write_text(json.dumps({"messages": [USER, ASSISTANT]}))  # a row, and no list of rows
    assert load_examples(str(file))[0].steps == STEPS


def test_broken_files_are_named(tmp_path):
    for name, content, code in (
        ("a.csv", b"question,answer\nq\n", "data.bad-table"),
        ("b.csv", b"question,question\nq,q\n", "data.bad-table"),
        ("c.csv", b"question,answer\ncaf\xe9,1\n", "data.bad-table"),
        ("a.jsonl.gz", b"no gzip", "data.bad-gzip"),
        ("b.jsonl.gz", gzip.compress(TEXT.encode())[:-9], "data.bad-gzip"),
        ("a.arrow", b"no arrow", "data.bad-arrow"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with refused(code, str(file)):
            load_examples(str(file))


def test_a_file_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(TEXT)
    asked = []

    def download(name, file, **how):
        asked.append((name, file, how["repo_type"], how["revision"], how["local_files_only"]))
        return str(tmp_path / "a.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("kava.system.hub.is_reachable", lambda name, kind: True)
    assert len(load_examples("hf://datasets/owner/name@v1/data/a.jsonl")) == 12
    assert asked == [("owner/name", "data/a.jsonl", "dataset", "v1", False)]
    for source in ("hf://datasets/owner/name", "hf://o/n/a.jsonl", "hf://datasets/o/n/*.csv"):
        with refused("data.bad-hub-file", source):
            load_examples(source)


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.json.gz", "bomb.csv.gz"])
def test_a_gzip_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "GZIP_BYTES", 1 << 16)
    (tmp_path / name).write_bytes(gzip.compress(b"a" * (1 << 17)))
    with refused("data.gzip-too-large"):
        list(files.read_rows(tmp_path / name))
