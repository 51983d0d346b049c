"""Training questions that are test questions: found, named, and stopped before a training."""

import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from rich.console import Console
from typer.testing import CliRunner

from kava.cli import app
from kava.data.synthetic import generate
from kava.data.tasks import Task, load_task
from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved
from kava.recipe.load import load_recipe
from kava.recipe.schema import BackboneRecipe, Data
from kava.training.leaks import find_leaks, normalize, without_numbers
from kava.training.rows import read_rows
from kava.types import Example

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="real data (../shared/data) is not here"
)
TEST = "Ann’s hens lay 1,200 eggs in 2.5 weeks. She eats three.  How many are left?"
SAME = [
    "ann's HENS lay 1200 eggs in 2.5 weeks; she eats three -- how many are left",
    "Ann’s hens lay １,２００ eggs in 2.5 weeks.\nShe eats three. How many are left",
]
ALIKE = ["Ann's hens lay 7 eggs in .5 weeks. She eats 12. How many are left?",
         "Ann's hens lay twenty eggs in 3 weeks. She eats 1. How many are left?"]  # fmt: skip
OTHER = ["Ann's hens lay 1,200 eggs in 2.5 weeks. She eats three. How many are right?",
         "Ann's hens lay many eggs in 2.5 weeks. She eats three. How many are left?"]  # fmt: skip


def task_of(*questions):
    examples = [Example(f"t-{n}", question, (), "1") for n, question in enumerate(questions)]
    return Task("gsm8k", 1, "test", examples, "here")


def kinds(trained, *tests):
    rows = [(f"row {n}", question) for n, question in enumerate(trained)]
    return [(x.kind, x.train, x.test) for x in find_leaks(rows, task_of(*tests))]


def test_equal_and_equal_up_to_numbers_by_hand():
    assert kinds(SAME, "x", TEST) == [("equal", "row 0", "t-1"), ("equal", "row 1", "t-1")]
    alike = "up to numbers"
    assert kinds(ALIKE, "x", TEST) == [(alike, "row 0", "t-1"), (alike, "row 1", "t-1")]
    assert kinds(OTHER, "x", TEST) == []
    # Equal to one and equal to an earlier one up to numbers: equal.
    assert kinds([SAME[0]], ALIKE[0], TEST) == [("equal", "row 0", "t-1")]
    assert kinds(["?!"], "!?", "$") == []  # signs alone are not all one question


def slow_normal(question):
    """Character by character, from the words of the module's docstring."""
    text = unicodedata.normalize("NFKC", question).casefold()
    left = ""
    for at, sign in enumerate(text):
        before, after = text[at - 1 : at], text[at + 1 : at + 4]
        thousands = sign == "," and before.isdecimal() and len(after) == 3 and after.isdecimal()
        left += "" if sign in "'’" or thousands else sign
    kept = []
    for at, sign in enumerate(left):  # what was dropped parts nothing
        before, after = left[at - 1 : at], left[at + 1 : at + 2]
        point = sign == "." and after.isdecimal() and not before.isalpha()
        kept.append(sign if sign.isalnum() or point else " ")
    return " ".join("".join(kept).split()) or " ".join(question.split())


@given(st.text("abC 0123.,'’!-$\n", max_size=30) | st.text(st.characters(max_codepoint=0x250)))
def test_the_normal_form_agrees_with_a_slow_oracle(text):
    found = normalize(text)
    if any(sign.isalnum() for sign in found):
        assert found == slow_normal(text)


@given(st.lists(st.sampled_from(["Ann's", "hens", "1,200", "3.5", "three", "ÉGAL"]), min_size=1),
       st.sampled_from([" ", "\t", "  \n"]), st.sampled_from(["", ".", "?!", " …"]))  # fmt: skip
def test_blanks_signs_and_case_do_not_matter_and_words_do(words, blank, end):
    plain, written = " ".join(words), blank.join(words).upper() + end
    assert normalize(written) == normalize(plain)
    assert normalize(f"{written} more") != normalize(plain)
    assert without_numbers(normalize(plain.replace("three", "17"))) == without_numbers(
        normalize(plain)
    )


def test_generated_splits_share_no_question():
    task = load_task("synthetic", limit=200)
    rows = [(e.id, e.question) for e in generate("train", 2000)]
    assert not [leak for leak in find_leaks(rows, task) if leak.kind == "equal"]


@needs_real_data
def test_real_rows():
    """GSM8K train holds the 500 validation rows of GSM8k-Aug; the training subset holds none."""
    shared = lambda name: str(SHARED / f"{name}.jsonl")  # noqa: E731

    def counts(rows, task, file, *words):
        said = check(shared(rows), "--against", task, "--json", "--file", shared(file), *words)
        told = json.loads(said.stdout)
        (of_task,) = told["against"].values()
        assert said.exit_code == (1 if of_task["equal"] else 0)
        assert len(told["leaks"]) == of_task["equal"] + of_task["up_to_numbers"]
        return of_task["equal"], of_task["up_to_numbers"]

    split = "--option=split=validation"
    assert counts("gsm8k_train", "gsm8k_aug", "gsm8k_aug_valid", split) == (500, 0)
    assert counts("gsm8k_aug_train_subset", "gsm8k", "gsm8k_test") == (0, 0)
    assert counts("gsm8k_aug_test", "gsm8k", "gsm8k_test") == (1319, 0)
    assert counts("gsm8k_test", "gsm_hard", "gsm_hard") == (329, 988)


# -- the command ---------------------------------------------------------------------------------


def check(*words):
    done = CliRunner().invoke(app, ["data", "check", *map(str, words)])
    if isinstance(done.exception, KavaError):
        raise done.exception
    return done


def write(path, questions):
    rows = [{"question": q, "steps": [], "answer": "1"} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def gold_file(tmp_path):
    return write(
        tmp_path / "gsm8k.jsonl", [f"Question number {n} x{n}y" for n in range(1318)] + [TEST]
    )


def test_the_command_names_rows_and_its_status_says_whether_any_leaks(tmp_path, gold_file):
    rows = write(tmp_path / "rows.jsonl", [*OTHER, ALIKE[0], SAME[0]])
    against = ("--against", "gsm8k", "--against-file", gold_file)
    done = check(rows, *against)
    first, second, last = done.stdout.splitlines()
    assert done.exit_code == 1
    assert f"{rows}, line 4 = gsm8k-test-1318 of gsm8k (equal): " in first and "..." not in first
    assert f"{rows}, line 3 = gsm8k-test-1318 of gsm8k (up to numbers): " in second
    assert last.startswith("of 4 training questions 1 equal one of the 1,319 of gsm8k, 1 more")
    told = json.loads(check(rows, *against, "--json").stdout)
    assert told["against"] == {"gsm8k": {"rows": 1319, "equal": 1, "up_to_numbers": 1}}
    assert [leak["train"][-6:] for leak in told["leaks"]] == ["line 3", "line 4"]
    rows = write(tmp_path / "rows.jsonl", [*OTHER, *ALIKE])
    assert check(rows, *against).exit_code == 0
    assert check(rows, *against, "--strict").exit_code == 1
    rows = write(tmp_path / "rows.jsonl", OTHER)
    assert check(rows, *against, "--strict").exit_code == 0
    many = write(tmp_path / "rows.jsonl", SAME * 10)
    assert "... and 10 more; --json lists them all" in check(many, *against).stdout


def test_what_cannot_be_checked_is_named(tmp_path, gold_file):
    rows = tmp_path / "rows.jsonl"
    against = "--file", gold_file
    other = '{"prompt": "q", "answer": "1"}\n'
    for text, words, code, key, values in (
        ('{"question": 7}\n', ("gsm8k",), "data.bad-field", "question", ("line 1: ", "not 7")),
        (other, ("gsm8k",), "data.missing-field", "question", ("line 1: ", ": prompt, answer")),
        ("", ("gsm8k",), "data.no-rows", str(rows), ()),
        ("{}\n", ("gsm8k,svamp",), "data.files-and-tasks", "--file", ("1 --file", "2", "svamp;")),
        ("{}\n", ("gsm8k", "--option", "seed=1"), "data.unknown-option", "seed", ("gsm8k",)),
    ):
        rows.write_text(text)
        with refused(code, key) as caught:
            check(rows, "--against", *words, *against)
        for value in values:
            assert value in str(caught.value)


# -- before a training ---------------------------------------------------------------------------


def data(train, gold_file, **keys):
    return Data(
        train=str(train), leak_check=["gsm8k"], leak_files={"gsm8k": str(gold_file)}, **keys
    )


def told_by(section):
    console = Console(file=io.StringIO(), soft_wrap=True)
    rows, _ = read_rows(section, console)
    return rows, console.file.getvalue()


def test_a_leak_stops_a_training_unless_allowed_by_name(tmp_path, gold_file):
    rows = write(tmp_path / "rows.jsonl", [OTHER[0], SAME[1], ALIKE[0]])
    message = "1 training questions are test questions of gsm8k, such as rows-1 = gsm8k-test-1318 "
    for allowed in ([], ["gsm8k-test-1317"], ["svamp"]):
        with refused("training.leaks", "gsm8k") as caught:
            read_rows(data(rows, gold_file, allow_leaks=allowed))
        assert message in str(caught.value)
        assert "data.allow_leaks=[gsm8k-test-1318], or [gsm8k] for all" in str(caught.value)
        assert "\n" not in str(caught.value)
    for allowed in (["gsm8k-test-1318"], ["gsm8k"]):
        found, said = told_by(data(rows, gold_file, allow_leaks=allowed))
        assert len(found) == 3 and "of 3 training questions 1 equal one of the 1,319" in said


def test_rows_that_are_alike_but_for_numbers_are_told_and_stop_only_if_asked(tmp_path, gold_file):
    rows = write(tmp_path / "rows.jsonl", [OTHER[0], ALIKE[0]])
    _, said = told_by(data(rows, gold_file))
    assert "0 equal one of the 1,319 of gsm8k, 1 more equal one up to numbers" in said
    assert "such as rows-1 = gsm8k-test-1318" in said
    with refused("training.leaks", "gsm8k") as caught:
        read_rows(data(rows, gold_file, leak_stop="up_to_numbers"))
    assert "rows-1 = gsm8k-test-1318 of gsm8k (up to numbers)" in str(caught.value)


def test_a_check_that_cannot_be_made_is_an_error_and_none_at_all_is_said(tmp_path, monkeypatch):
    rows = write(tmp_path / "rows.jsonl", OTHER)
    monkeypatch.setattr("kava.system.hub.is_reachable", lambda name, kind: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with refused("data.not-had", "openai/gsm8k") as caught:
        read_rows(Data(train=str(rows), leak_check=["gsm8k"]))
    assert str(caught.value).startswith("data.leak_check: ")
    assert "data.leak_check=[]" in str(caught.value)
    said = told_by(Data(train=str(rows)))[1]
    assert "leak check: not enabled; enable it with data.leak_check=[gsm8k]" in said
    words = re.search(r'(data\.leak_check=\[rows\]) "(data\.leak_files=\{rows: FILE\})"', said)
    asked = [word.replace("FILE", str(rows)) for word in words.groups()]
    own = load_resolved("recipes/quickstart/kava.yaml", [f"data.train={rows}", *asked])
    with refused("training.leaks", "rows") as caught:
        read_rows(own.data.model_copy(update={"validation": None}))
    assert f"data: {len(OTHER)} " in str(caught.value)


def test_which_rows_are_checked_against_which_task(tmp_path):
    recipe = load_resolved("recipes/llama1b_aug/kava.yaml")
    assert recipe.data.leak_check == ["gsm8k_aug"]
    assert load_resolved("recipes/llama1b_aug_nl/kava.yaml").data.leak_check == ["gsm8k_aug"]
    small = load_recipe("recipes/gsm8k_small/backbone.yaml", kind=BackboneRecipe)
    assert small.data.leak_check == ["gsm8k_aug"]
    assert load_resolved("recipes/quickstart/kava.yaml").data.leak_check == []
    own = load_resolved("recipes/llama1b_aug/kava.yaml", ["data.train=rows.jsonl"])
    assert own.data.leak_check == []
    for words, code, key, value in (
        ("data.leak_check=[gsm8]", "recipe.unknown-name", "gsm8", "'gsm8k'?"),
        ("data.leak_files={svamp: a}", "recipe.unused-leak-file", "data.leak_files", "svamp,"),
        ("data.allow_leak=[gsm8k]", "recipe.unknown-key", "data.allow_leak", "'allow_leaks'?"),
    ):
        with refused(code, key) as caught:
            load_resolved("recipes/llama1b_aug/kava.yaml", [words])
        assert value in str(caught.value)


def test_validation_rows_are_compared_in_normal_form(tmp_path):
    rows = write(tmp_path / "rows.jsonl", [OTHER[0], SAME[0]])
    own = write(tmp_path / "own.jsonl", [TEST])
    with refused("training.shared-validation", "data.validation") as caught:
        read_rows(Data(train=str(rows), validation=str(own)))
    assert "data: 1 " in str(caught.value)
    assert "data.overlap=skip" in str(caught.value)
    console = Console(file=io.StringIO(), soft_wrap=True)
    skipping = Data(train=str(rows), validation=str(own), overlap="skip")
    trained, validation = read_rows(skipping, console)
    assert ([e.question for e in trained], [e.question for e in validation]) == (OTHER[:1], [TEST])
    assert "1 training rows are left out" in console.file.getvalue()
    rows = write(tmp_path / "rows.jsonl", SAME)  # nothing would be left
    with refused("training.shared-validation", "data.validation"):
        read_rows(skipping)


def test_train_stops_before_it_writes_anything(tmp_path, gold_file):
    rows = write(tmp_path / "rows.jsonl", SAME[:1])
    run = tmp_path / "run"
    done = CliRunner().invoke(
        app,
        ["train", "recipes/quickstart/kava.yaml", f"data.train={rows}", "data.validation=null",
         "train.steps=1", "data.leak_check=[gsm8k]",
         f"data.leak_files={{gsm8k: {gold_file}}}", "-o", str(run)],
    )  # fmt: skip
    assert (done.exception.code, done.exception.key) == ("training.leaks", "gsm8k")
    assert not run.exists()
