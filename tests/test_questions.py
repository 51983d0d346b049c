"""Questions on the command line: those that begin with a minus, and those that are piped."""

import pytest
import tiny
import typer
from refusals import refused
from typer.testing import CliRunner

from kava.cli import app, looking

MINUS = ("-5 + 3 = ?", "-5", "-$5 + 3?", "- 5 + 3", "--5 + 3 = ?", "-a is b. What is a?")


@pytest.fixture
def asked(monkeypatch):
    """What the commands were given to ask, without a model."""
    found = []
    thinker = tiny.reasoner("llama", "kava")
    monkeypatch.setattr("kava.reasoning.open.open_reasoner", lambda *given, **named: thinker)
    monkeypatch.setattr(
        "kava.inspect.ask.answer_one", lambda model, question, how, console: found.append(question)
    )
    return found


def run(*words, **more):
    return CliRunner().invoke(app, list(words), **more)


@pytest.mark.parametrize("question", MINUS)
def test_a_question_may_begin_with_a_minus(question, asked):
    for words in (
        ("run", question), ("run", "--", question), ("--max-new-tokens", "3", "run", question),
        ("run", question, "--max-new-tokens", "3"), ("--backbone", "no/such", question),
    ):  # fmt: skip
        done = run("ask", *words)
        assert done.exit_code == 0, (words, done.output)
    assert asked == [question] * 5


def test_options_stay_options(asked):
    for words in (("--show-thought",), ("-x",), ("--max-new-tokens=-1",)):
        assert run("ask", "run", "-5 + 3", *words).exit_code == 2, words
    with refused("cli.bad-iterations", "--iterations"):
        raise run("ask", "run", "-5 + 3", "--iterations", "-1").exception
    assert asked == []


def test_inspect_takes_them_too(monkeypatch):
    seen = []
    monkeypatch.setattr("kava.inspect.command.inspect", lambda *given: seen.append(given))
    run("inspect", "run", "-5 + 3", "--answer", "-2", "--steps", "<<-5+3=-2>>", "<<1=1>>")
    assert seen[0][:4] == ("run", "-5 + 3", ["<<-5+3=-2>>", "<<1=1>>"], "-2")


def test_a_byte_order_mark_is_no_part_of_a_piped_question(asked):
    done = run("ask", "run", input="\ufeffHow many?\nAnd now?\n".encode())
    assert done.exit_code == 0, done.output
    assert asked == ["How many?", "And now?"]


def test_every_command_with_a_question_takes_them():
    commands = typer.main.get_command(app).commands
    with_question = {
        name
        for name, command in commands.items()
        if any(param.name == "question" for param in command.params)
    }
    assert with_question == {"ask", "inspect"}
    for name in with_question:
        assert isinstance(commands[name], looking.QuestionCommand)
