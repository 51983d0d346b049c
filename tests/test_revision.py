"""A revision of the Hub: each command that loads a model takes one, and records its commit."""

import json
import shutil
from contextlib import nullcontext

import pytest
from tiny import bare, recipe, tokenizer

from kava.evaluation.command import evaluate_tasks
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.system import hub
from kava.system.text import PlainConsole

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/model-of-theirs"
COMMANDS = {
    "ask": ("ask", NAME, "w1"),
    "ask --backbone": ("ask", "--backbone", NAME),
    "eval": ("eval", NAME, "--task", "rows", "--file", "ROWS", "-o", "OUT"),
    "ablate": ("ablate", NAME, "--task", "rows", "--file", "ROWS", "-o", "OUT"),
    "inspect": ("inspect", NAME, "w1", "-o", "OUT/page.html"),
    "serve": ("serve", NAME, "--port", "1"),
}


@pytest.fixture
def asked(monkeypatch):
    """The revisions that the Hub is asked for; it has nothing."""
    found = []

    def download(name, revision, *_):
        found.append((name, revision))
        raise hub.NotAvailable("none", "none", key=name)

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr(hub, "has_file", lambda name, file, revision=None: False)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_asks_for_its_revision(name, asked, tmp_path, monkeypatch, kava):
    if name == "serve":
        pytest.importorskip("fastapi")
        monkeypatch.setattr("kava.serve.command.bind", lambda *_: nullcontext())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "w1", "steps": [], "answer": "2"}) + "\n")
    places = {"ROWS": str(rows), "OUT": str(tmp_path / "out")}
    words = [places.get(word, word.replace("OUT", places["OUT"])) for word in COMMANDS[name]]
    status, said = kava(*words, "--revision", "v1")
    assert (status, said.code) == (2, "reasoning.not-had"), said
    assert asked == [(NAME, "v1")]


def test_the_demo_gets_its_revision(monkeypatch, kava):
    """Its page takes long to import."""
    given = []
    monkeypatch.setattr("kava.demo.command.serve", lambda *words: given.append(words))
    assert kava("demo", NAME, "--revision", "v1")[0] == 0
    assert (given[0][0], given[0][-1]) == (NAME, "v1")


@pytest.fixture
def online(tmp_path, monkeypatch):
    """Serve a folder as the Hub would: a snapshot that is named by its commit."""

    def put(folder):
        snapshot = tmp_path / "snapshots" / COMMIT
        shutil.copytree(folder, snapshot)
        monkeypatch.setattr(hub, "download", lambda *_: snapshot)
        there = (snapshot / "kava.json").is_file()
        monkeypatch.setattr(hub, "has_file", lambda name, file, revision=None: there)

    return put


@pytest.mark.parametrize("kind", ["backbone", "checkpoint"])
def test_the_commit_that_was_loaded_is_recorded_in_the_result(
    kind, online, tmp_path, monkeypatch
):  # fmt: skip
    monkeypatch.setattr("kava.evaluation.symbolic.is_equivalent", lambda *_: False)
    folder = tmp_path / "backbone"
    bare("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if kind == "checkpoint":
        Reasoner.build(recipe("cot", backbone=str(folder))).save_pretrained(tmp_path / "saved")
        folder = tmp_path / "saved"
    online(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "w1", "steps": [], "answer": "2"}) + "\n")
    evaluate_tasks(
        NAME, ["rows"], [str(rows)], None, None, [], tmp_path / "out", None,
        PlainConsole(quiet=True), revision="main",
    )  # fmt: skip
    scores = json.loads((tmp_path / "out" / "result.json").read_text())["scores"]
    assert [one["model"] for one in scores.values()] == [{"name": NAME, "revision": COMMIT}]


def test_a_local_folder_has_no_revision(backbone, kava):
    status, said = kava("ask", str(backbone), "w1", "--revision", "v1")
    assert (status, said.code, said.key) == (2, "reasoning.revision-of-folder", "--revision")
    assert open_reasoner(str(backbone)).source is None
