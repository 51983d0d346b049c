"""The commands as a user meets them: help, one clear line for bad input, answers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused
from typer.main import get_command

from kava.cli import app
from kava.inference import compressed
from kava.inspect import ask

#: Its answers are short; math-verify takes its whole second over what a random backbone writes.
TRAINED = Path(__file__).parents[1] / "checkpoints" / "quickstart" / "kava"
QUESTION = "Monday brought Ann 4 pens. How many pens did Monday bring Ann?"


def printed(*words: object) -> str:
    """What a process prints, as it is started by a shell."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_names_each_command_with_its_purpose(kava):
    status, said = kava("--help")
    assert status == 0
    commands = "quickstart train sweep pretrain eval table plot compare score ask inspect ablate"
    for command in (*commands.split(), "prefetch", "watch", "serve", "demo", "recipes", "data"):
        line = next(row for row in said.splitlines() if row.split()[:1] == [command])
        assert len(line.split()) > 4 and not line.endswith("...")


def commands(command, path=()):
    """The words of each command and group of commands, that of `kava` itself among them."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize("words", list(commands(get_command(app))), ids=" ".join)
def test_each_help_ends_with_two_examples_of_its_command(kava, words):
    status, said = kava(*words, "--help")
    lines = said.out.partition("Examples:\n")[2].splitlines()
    assert status == 0 and len(lines) >= 2
    assert all(" ".join(("kava", *words)) in line for line in lines)


@pytest.mark.processes
def test_the_console_script_is_the_module():
    script = Path(sys.executable).with_name("kava")
    assert printed(script, "--help") == printed(sys.executable, "-m", "kava", "--help")


@pytest.mark.processes
def test_nothing_heavy_is_imported_before_it_is_needed():
    """Three modules are imported, each of which imports more than the one before."""
    heavy = "{'torch', 'transformers', 'datasets', 'matplotlib', 'math_verify', 'sympy'}"
    check = f"print(sorted({heavy} & set(sys.modules)))"
    code = ["import sys"]
    for module in ("kava", "kava.cli", "kava.__main__"):
        code += [f"import {module}", check]
    assert printed(sys.executable, "-c", "\n".join(code)) == "[]\n" * 3


def test_public_names_load_on_first_use():
    import kava

    assert kava.Reasoner.__name__ == "Reasoner"
    with pytest.raises(AttributeError, match="Reasoneer"):
        kava.Reasoneer  # noqa: B018


#: Words, and the code and key of the error and values that its line has.
BAD = {
    "no such recipe": (["train", "nowhere.yaml"], ("system.no-such-file", "nowhere.yaml")),
    "typo in a key": (
        ["train", "recipes/llama1b_aug/kava.yaml", "train.learnin_rate=1"],
        ("recipe.unknown-key", "train.learnin_rate", "'learning_rate'"),
    ),
    "typo in a method": (
        ["train", "recipes/quickstart/kava.yaml", "method=kva", "-o", "{tmp}/r"],
        ("recipe.unknown-name", "kva", "'kava'"),
    ),
    "override without value": (
        ["train", "recipes/quickstart/kava.yaml", "seed"],
        ("recipe.bad-override", "seed"),
    ),
    "missing rows": (
        ["train", "recipes/quickstart/kava.yaml", "data.train=no.jsonl", "-o", "{tmp}/r"],
        ("data.no-file", "no.jsonl"),
    ),
    "typo in a logger": (
        ["train", "recipes/quickstart/kava.yaml", "train.report_to=[wanb]", "-o", "{tmp}/r"],
        ("training.unknown-tracker", "wanb", "'wandb'"),
    ),
    "output is a file": (
        [
            "train",
            "recipes/quickstart/kava.yaml",
            "data.train_rows=8",
            "-o",
            "{backbone}/config.json",
        ],
        (None, None, "config.json: "),
    ),
    "no such method here": (
        ["quickstart", "--method", "cot"],
        ("quickstart.unknown-method", "cot"),
    ),
    "no such run": (["ask", "{tmp}/nowhere", "hello"], ("reasoning.not-had", "{tmp}/nowhere")),
    "not a run": (["eval", "{tmp}", "--task", "synthetic"], ("reasoning.not-a-model", "{tmp}")),
    "typo in a task": (
        ["eval", "{backbone}", "--task", "synthetik", "-o", "{tmp}/r"],
        ("recipe.unknown-name", "synthetik", "'synthetic'"),
    ),
    "a bad option": (
        ["eval", "{backbone}", "--task", "synthetic", "--option", "max_step=2", "-o", "{tmp}/r"],
        ("data.unknown-option", "max_step", "'max_steps'"),
    ),
    "results of a shipped checkpoint": (
        ["eval", "checkpoints/quickstart/kava", "--task", "synthetic", "--limit", "2"],
        ("evaluation.not-a-run", "checkpoints/quickstart/kava", " -o "),
    ),
    "an option of another task": (
        ["eval", "{backbone}", "--task", "gsm8k", "--option", "year=2024", "-o", "{tmp}/r"],
        ("data.unknown-option", "year", "task gsm8k"),
    ),
    "a backbone for what has all its weights": (
        ["ask", "checkpoints/quickstart/kava", "--backbone", "{backbone}", "hello"],
        ("reasoning.backbone-unwanted", "{backbone}", "checkpoints/quickstart/kava: "),
    ),
    "a backbone for a plain model": (
        ["eval", "{backbone}", "--backbone", "{backbone}", "--task", "rows", "-o", "{tmp}/r"],
        ("reasoning.backbone-unwanted", "{backbone}", "{backbone}: "),
    ),
    "a folder as recipe": (
        ["train", "recipes/quickstart", "-o", "{tmp}/r"],
        ("recipe.is-folder", "recipes/quickstart", " backbone.yaml, coconut.yaml, "),
    ),
    "no task": (
        ["eval", "{backbone}", "--task", "", "-o", "{tmp}/r"],
        ("cli.empty-name", "--task"),
    ),
    "a task twice": (
        ["eval", "{backbone}", "--task", "synthetic, synthetic", "-o", "{tmp}/r"],
        ("evaluation.task-twice", "synthetic"),
    ),
    "a task without a file": (
        ["eval", "{backbone}", "--task", "gsm8k,svamp,rows", "--file", "a", "-o", "{tmp}/r"],
        ("data.files-and-tasks", "--file", " 1 ", " 3 ", " svamp, rows;"),
    ),
    "a file without a task": (
        ["eval", "{backbone}", "--task", "gsm8k", "--file", "a", "--file", "b", "-o", "{tmp}/r"],
        ("data.files-and-tasks", "--file", " 2 ", " 1 ", " b;"),
    ),
    "scores into a file": (
        ["eval", "{backbone}", "--task", "synthetic", "-o", "{backbone}/config.json"],
        ("evaluation.not-a-folder", "{backbone}/config.json"),
    ),
    "scores below a file": (
        ["eval", "{backbone}", "--task", "synthetic", "-o", "{backbone}/config.json/a/b"],
        ("evaluation.not-a-folder", "{backbone}/config.json"),
    ),
    "nothing to look into": (
        ["inspect", "{backbone}", "hello", "-o", "{tmp}/r"],
        ("inspect.no-latents", "cot", " coconut, codi"),
    ),
    "nothing to change": (
        ["ablate", "{backbone}", "--task", "synthetic"],
        ("evaluation.no-latents", "cot"),
    ),
    "nothing to watch": (["watch", "{tmp}"], ("runs.nothing-to-watch", "{tmp}")),
    "no results": (["table", "{tmp}"], ("report.no-run", "{tmp}")),
    "served to everybody": (
        ["serve", "{backbone}", "--host", "0.0.0.0"],
        ("serve.no-key", "--api-key"),
    ),
    "more than the memory": (
        ["bench", "train", "recipes/bench/cot.yaml", "--shape", "llama:vocab_size=99999999999999"],
        (None, None, "train.micro_batch_size"),
    ),
    "an empty question": (["ask", "{backbone}", "  "], ("inspect.empty-question", "question")),
    "nobody to ask": (["ask"], ("cli.no-model", "--backbone")),
    "predictions of nothing": (["score", "{tmp}/p.jsonl"], ("evaluation.task-or-data", "--task")),
    "no predictions": (
        ["score", "{tmp}/p.jsonl", "--task", "synthetic", "--limit", "1"],
        ("data.no-file", "{tmp}/p.jsonl"),
    ),
    "rows of nowhere": (
        ["data", "check", "{tmp}/p.jsonl", "--against", "gsm8"],
        ("recipe.unknown-name", "gsm8", "'gsm8k'"),
    ),
    "rows of nowhere at all": (
        ["data", "check", "{tmp}/p.jsonl", "--against", ""],
        ("cli.empty-name", "--against", "''"),
    ),
    "a task without a name": (
        ["eval", "{backbone}", "--task", ""],
        ("cli.empty-name", "--task", "''"),
    ),
    "a task too few": (
        ["sweep", "recipes/quickstart/kava.yaml", "--task", "gsm8k,", "--dry-run"],
        ("cli.empty-name", "--task", "'gsm8k,'"),
    ),
    "nothing to fetch": (
        ["prefetch", "recipes/quickstart/kava.yaml", "--task", ""],
        ("cli.empty-name", "--task"),
    ),
    "no task to compare": (
        ["compare", "{backbone}", "{backbone}", "--task", ""],
        ("cli.empty-name", "--task"),
    ),
    "smoke of a run to resume": (
        ["train", "recipes/quickstart/kava.yaml", "--smoke", "--resume", "-o", "{tmp}/r"],
        ("cli.resume-with-smoke", "--resume"),
    ),
    "a setting that is no date": (
        ["ask", "--backbone", "{backbone}", "--compress", "rkv", "budget=2024-13-45", "hello"],
        ("reasoning.bad-setting", "budget", "'2024-13-45'"),
    ),
    "inspecting a home of nobody": (
        ["inspect", "~nobody-here/x", "hello"],
        ("reasoning.not-had", "~nobody-here/x"),
    ),
    "results of nobody": (["table", "~nobody-here/x"], ("report.no-such-folder", "~nobody-here/x")),
    "a check of nobody's rows": (
        ["data", "check", "~nobody-here/x", "--against", "synthetic"],
        ("data.no-file", "~nobody-here/x"),
    ),
    "a task with nobody's rows": (
        ["score", "{backbone}/config.json", "--task", "svamp", "--file", "~nobody-here/x"],
        ("data.no-file", "~nobody-here/x"),
    ),
    "a task of nobody's rows": (
        ["score", "{backbone}/config.json", "--task", "rows", "--file", "~nobody-here/x"],
        ("data.no-file", "~nobody-here/x"),
    ),
    "typo in its settings": (
        ["ask", "--backbone", "{backbone}", "--compress", "rkv_decoding", "bugdet=9", "hello"],
        ("reasoning.unknown-setting", "bugdet", "'budget'"),
    ),
}


@pytest.mark.parametrize("words, wanted", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_status_2(words, wanted, kava, backbone, tmp_path, monkeypatch):
    def filled(texts):
        return [text and text.format(tmp=tmp_path, backbone=backbone) for text in texts]

    monkeypatch.chdir(Path(__file__).parents[1])
    status, said = kava(*filled(words))
    code, key, *values = filled(wanted)
    assert (status, said.code, said.key) == (2, code, key), said
    assert len(said.splitlines()) == 1 and all(value in said for value in values), said
    assert not (tmp_path / "r" / "result.json").exists()
    assert not (tmp_path / "r" / "metrics.jsonl").exists() and not (tmp_path / "r").is_file()


def test_a_broken_row_is_named_by_file_and_line(kava, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "q", "steps": [], "answer": "1"}\n{"question": "q"}\n')
    monkeypatch.chdir(Path(__file__).parents[1])
    status, said = kava(
        "train", "recipes/quickstart/kava.yaml", f"data.train={rows}", "-o", tmp_path / "r"
    )
    assert (status, said.code, said.key) == (2, "data.missing-field", "answer")
    assert f"{rows}, line 2: " in said
    assert len(said.splitlines()) == 1, "the recipe is told when all is well"


def test_ask_answers_a_question_given_or_piped(backbone, kava, monkeypatch):
    long = " ".join([QUESTION] * 12)  # longer than a file's name may be
    assert len(long) > 255
    status, given = kava("ask", "--backbone", backbone, long, "--max-new-tokens", 5)
    assert status == 0, given
    reading, writing = os.pipe()
    os.write(writing, f"{long}\n\n{QUESTION}\n".encode())
    os.close(writing)
    with os.fdopen(reading) as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        status, said = kava("ask", backbone, "--max-new-tokens", 5)
    assert status == 0, said
    assert given.out.count("forward passes") == 1
    assert said.out.count("forward passes") == 2
    assert said.out.splitlines()[0] == given.out.splitlines()[0]


def test_ask_can_compress_the_cache(backbone, kava):
    words = ("ask", "--backbone", backbone, "--max-new-tokens", 40, "--compress", "rkv_decoding")
    status, said = kava(*words, "budget=20", "buffer=8", "window=4", "lambda=0.3", QUESTION)
    assert status == 0, said
    held, seen = re.search(r"cache: at most (\d+) columns of (\d+)", said.out).groups()
    assert int(seen) > 60 > int(held)


def test_words_are_parted_into_run_question_and_settings(unchecked):
    part = lambda *words: ask.read_words(words, "rkv_decoding")  # noqa: E731
    assert part("run", "budget=9", "What is 1 + x=2 ?") == (
        ["run", "What is 1 + x=2 ?"],
        compressed.plan(budget=9),
    )
    assert part("a=b c", "threshold=0.7", "retain=first")[0] == ["a=b c"]
    assert ask.read_words(["run", "x=3"], None) == (["run", "x=3"], None)
    for words, code, key, value in (
        (("run", "What is", "two"), "inspect.too-many-words", "two", "'two'"),
        (("kernel=[",), "reasoning.bad-setting", "kernel", "'['"),
        (("budget=ten",), "reasoning.bad-setting", "budget", "'ten'"),
    ):
        with refused(code, key) as told:
            part(*words)
        assert value in str(told.value)


def test_smoke_runs_the_papers_recipe_and_its_checkpoint_shows_its_thoughts(
    tmp_path, kava, monkeypatch
):
    monkeypatch.chdir(Path(__file__).parents[1])
    run = tmp_path / "run"
    status, said = kava("train", "recipes/llama1b_aug/kava.yaml", "--smoke", "-o", run)
    assert status == 0, said
    assert "its numbers are not results" in said.out
    status, asked = kava("ask", run, QUESTION, "--backbone", run / "backbone", "--show-thoughts")
    assert status == 0, asked
    latents = [line for line in asked.out.splitlines() if line.startswith("latent ")]
    assert len(latents) == 24  # M of the recipe
    assert all(len(line.split("  ")) >= 6 for line in latents)  # five tokens each


def test_eval_says_how_many_right_answers_the_headline_cannot_read(tmp_path, kava):
    rows = tmp_path / "rows.jsonl"
    asked = [{"question": "Is 4 even?", "answer": "yes"}, {"question": "2 and 2?", "answer": "4"}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    status, said = kava("eval", TRAINED, "--task", "rows", "--file", rows, "-o", tmp_path / "out")
    assert status == 0, said
    assert "1 of 2 right answers are not plain numbers, such as 'yes'" in said.out


def test_eval_scores_several_local_files_with_one_model(tmp_path, kava):
    for name, answers in (("own", "1"), ("more", "12")):
        rows = [{"question": f"{n} and 2?", "answer": n} for n in answers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own, more = tmp_path / "own.jsonl", tmp_path / "more.jsonl"
    words = ["eval", TRAINED, "--limit", 3, "-o", tmp_path / "out", "--task"]
    status, said = kava(*words, "gsm8k,rows", "--file", more, "--file", own, "--json")
    assert status == 0, said
    scores = json.loads(said.out)
    assert {name: score["n"] for name, score in scores.items()} == {"gsm8k": 2, "rows-own": 1}
    kept = json.loads((tmp_path / "out" / "result.json").read_text())["scores"]
    assert {name: score["source"] for name, score in kept.items()} == {
        "gsm8k": str(more), "rows-own": str(own)
    }  # fmt: skip


def test_eval_writes_scores_and_predictions(tmp_path, kava):
    words = ("--task", "synthetic", "--limit", 12, "--json")
    status, said = kava("eval", TRAINED, "-o", tmp_path, *words)
    assert status == 0, said
    scores = json.loads(said.out)["synthetic"]
    predictions = (tmp_path / "predictions" / "synthetic.jsonl").read_text().splitlines()
    assert scores["n"] == 12 == len(predictions)
    first = json.loads(predictions[0])
    assert {"id", "question", "answer", "prediction", "correct", "forward_passes"} <= first.keys()
    kept = json.loads((tmp_path / "result.json").read_text())["scores"]["synthetic"]
    assert kept["accuracy"] == scores["accuracy"] and "accuracy_se" in kept
    file = tmp_path / "predictions" / "synthetic.jsonl"  # as it is, it can be scored again
    counts = json.loads(kava("score", file, *words)[1].out)
    assert counts["n"] == 12
    assert {k: round(100 * v / 12, 2) for k, v in counts["correct"].items()} == (
        scores["accuracy_by_rule"]
    )
