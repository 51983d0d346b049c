"""Texts of models, runs and rows neither steer a terminal nor style what it shows."""

import io
import json
import sys
from dataclasses import replace

import pytest
import tiny
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kava import __main__ as kava_main
from kava.cli._app import make_console
from kava.inspect.ask import Settings, answer_one
from kava.system.progress import Progress
from kava.system.text import PlainConsole, printable

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\x7f\x0b"
EVIL = f"a{ESCAPES}[red]b[/red] [/x] :smile:"
SHOWN = f"a{printable(ESCAPES)}[red]b[/red] [/x] :smile:"


@pytest.fixture
def terminal():
    """A console as of a terminal with colours, and what it wrote."""
    return PlainConsole(file=io.StringIO(), force_terminal=True, width=200)


def is_plain(text):
    return not any(sign in text for sign in ESCAPES if not sign.isprintable())


@pytest.mark.parametrize("code", (*range(32), *range(127, 160)))
def test_control_characters_are_left_out(code):
    kept = "a\tb\nc" + (chr(code) if code in (9, 10) else "")
    assert printable(f"a\tb\nc{chr(code)}") == kept


def test_all_other_characters_are_kept():
    text = "".join(map(chr, (*range(32, 127), *range(160, 0xD800), *range(0x1F600, 0x1F650))))
    assert printable(text) == text


@pytest.mark.parametrize("what", ("text", "styled", "cell", "live"))
def test_a_console_shows_a_text_as_it_is(terminal, what):
    if what == "text":
        terminal.print(EVIL, highlight=False)
    elif what == "styled":
        terminal.print(Text(EVIL, "bold"))
    else:
        table = Table(EVIL, title=EVIL, caption=EVIL)
        table.add_row(EVIL)
        if what == "cell":
            terminal.print(table)
        else:
            terminal = PlainConsole(file=io.StringIO(), width=200)
            with Live(table, console=terminal, auto_refresh=False):
                pass
    said = terminal.file.getvalue()
    assert SHOWN in said
    assert not any(sign in said for sign in ("\x1b]", "\x1b[2J", "\x1b[31m", "\x07", "\x9b", "\r"))
    assert ("\x1b[1m" in said) == (what in ("styled", "cell"))


def test_the_bar_of_a_training_shows_its_name_as_it_is():
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=200)
    with Progress(EVIL, console) as progress:
        progress.begin(0, 2)
        progress.step(1)
    said = console.file.getvalue()
    assert SHOWN in said and "\x1b]0" not in said and "\x1b[2J" not in said


def test_an_answer_does_nothing_in_a_terminal(capsys, monkeypatch):
    thinker = tiny.reasoner("llama", "kava")
    answer = thinker.answer

    def evil(*words):
        return [replace(one, text=EVIL) for one in answer(*words)]

    monkeypatch.setattr(type(thinker), "answer", lambda self, *words: evil(*words))
    answer_one(thinker, "w1", Settings(max_new_tokens=2), make_console())
    said = capsys.readouterr().out
    assert said.startswith(f"{SHOWN}\n") and is_plain(said)


@pytest.fixture
def run(tmp_path):
    """A run's folder whose name, log and result hold more than text."""
    folder = tmp_path / EVIL.replace("/", "|")
    folder.mkdir()
    record = {"step": 1, "loss": 1.0, EVIL: 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    score = {"n": 4, "accuracy": 50.0}
    (folder / "result.json").write_text(json.dumps({"method": EVIL, "scores": {EVIL: score}}))
    return folder


@pytest.mark.parametrize(
    "command", (("watch", "--once"), ("table",), ("compare",), ("eval", "--task", "synthetic"))
)
def test_commands_on_the_run_of_somebody_else_do_nothing_either(run, command, kava):
    again = [run] if command[0] == "compare" else []
    _, said = kava(command[0], run, *again, *command[1:])
    assert said.strip() and "[red]b" in said
    assert is_plain(said), said


def test_a_torn_log_is_told_without_what_is_in_it(run, kava):
    with (run / "metrics.jsonl").open("a") as log:
        log.write(f"{ESCAPES}\n{ESCAPES}\n")
    code, said = kava("watch", run, "--once")
    assert (code, said.code) == (2, "runs.not-a-log") and is_plain(said)


def test_an_error_is_one_plain_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kava", "watch", f"none{EVIL}"])
    with pytest.raises(SystemExit):
        kava_main.main()
    assert is_plain(capsys.readouterr().err)
