"""Text that is no valid Unicode is one line, with its place, before any work is done."""

import io
import json
import sys

import pytest
import tiny
from refusals import refused

from kava.data import load_examples
from kava.system.text import check_text

ROW = {"id": "a", "question": "w1 w2", "steps": ["<<1+1=2>>", "<<2+2=4>>"], "answer": "4"}
LINE = "w1 w2 w3 " * 34  # longer than the name of a file can be


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny.reasoner("llama", "kava").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    tiny.bare("llama", max_position_embeddings=1024).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def test_the_first_wrong_character_is_named():
    check_text("é \U0001f600 \ufffd \x00", "it")
    with refused("system.not-unicode", "it") as told:
        check_text("ab\ud800\ud800", "it")
    assert str(told.value) == (
        r"it is not valid Unicode text: character 3 is \ud800; encode it as UTF-8"
    )
    with refused("system.not-unicode", "it") as told:
        check_text(b"\xff".decode("utf-8", "surrogateescape"), "it")
    assert r"character 1 is the byte 0xff, or \udcff" in str(told.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("id", "a\ud800"), ("question", "w1 \udfff"), ("answer", "4\ud800"),
     ("steps", ["<<1+1=2>>", "\ud800"]), ("cot", ["\ud800"])],
)  # fmt: skip
def test_a_row_is_named_by_its_line(tmp_path, field, value):
    row = {key: part for key, part in ROW.items() if (key, field) != ("steps", "cot")}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, [{**ROW, "id": "b"}, {**row, field: value}])) + "\n")
    with refused("system.not-unicode", f"{file}, line 2: '{field}'") as raised:
        load_examples(str(file))
    assert str(raised.value).isascii()


@pytest.mark.parametrize("power", ["+", "-", ""])
def test_a_number_past_all_powers_is_one_line(tmp_path, power):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW).replace('"4"', f"1E{power}{10**21}") + "\n")
    with refused("data.number-beyond-reason", f"{file}, line 1"):
        load_examples(str(file))


def test_eval_ends_before_it_answers(kava, folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "\ud800"}) + "\n")
    status, said = kava("eval", folder, "--task", "rows", "--file", rows, "-o", tmp_path / "run")
    assert status == 2 and len(said.splitlines()) == 1 and not (tmp_path / "run").exists()
    assert (said.code, said.key) == ("system.not-unicode", f"{rows}, line 2: 'id'")


def test_ask_and_inspect_take_bytes_that_are_no_text(kava, folder, tmp_path):
    bad = b"bad \xff q".decode("utf-8", "surrogateescape")  # as Python reads a command line
    for key, *words in (
        ("the question", "ask", folder, bad),
        ("inspect: the question", "inspect", folder, bad),
        ("inspect: step 1", "inspect", folder, "w1", "--steps", bad, "-o", tmp_path / "page.html"),
        ("inspect: the answer", "inspect", folder, "w1", "--answer", bad, "-o",
         tmp_path / "page.html"),
    ):  # fmt: skip
        status, said = kava(*words)
        assert (status, said.code, said.key) == (2, "system.not-unicode", key), said
        assert len(said.splitlines()) == 1 and "character 5 is the byte 0xff" in said
    assert not list(tmp_path.iterdir())


def test_a_line_of_the_input_is_named(kava, folder, monkeypatch):
    piped = io.TextIOWrapper(io.BytesIO(b"w1\n\nw2 \xff\nw3\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", piped)
    status, said = kava("ask", folder, "--max-new-tokens", 2)
    assert status == 2 and said.count("forward passes") == 1
    assert (said.code, said.key) == ("system.not-unicode", "the question")
    assert "kava: ask: line 3 of the input: " in said


def test_a_question_may_be_longer_than_the_name_of_a_file(kava, backbone):
    status, said = kava("ask", "--backbone", backbone, LINE, "--max-new-tokens", 2)
    assert status == 0 and "forward passes" in said
    short = kava("ask", "--backbone", backbone, "w1 w2", "--max-new-tokens", 2)
    assert short[0] == 0
