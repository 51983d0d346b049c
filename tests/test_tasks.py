"""Tasks: what is loaded, from where, and what is refused."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from tiny import Table

from kava.data import call, prontoqa
from kava.data.answers import plain_number
from kava.data.tasks import load_task, read_options
from kava.evaluation.answers import score
from kava.recipe import registry

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="real data (../shared/data) is not here"
)
# The tasks that read the file of a published test set.
PUBLISHED_SETS = [
    "aime", "asdiv", "gsm8k", "gsm8k_aug", "gsm8k_platinum", "gsm_hard", "gsm_plus", "math_500",
    "multiarith", "svamp",
]  # fmt: skip
PUBLISHED = {
    "question": "How many?",
    "answer": "16 - 3 = <<16-3=13>>13 eggs.\nTimes 100 is $<<13*100=1300>>1300.\n#### 1,300",
}


def refuses(code, key, name, **how):
    """The task is refused; returns the message."""
    with refused(code, key) as caught:
        load_task(name, **how)
    return str(caught.value)


def test_wrong_names():
    assert "'gsm8k'?" in refuses("recipe.unknown-name", "gsm8", "gsm8")
    options = {"max_step": 2}
    assert "'max_steps'?" in refuses(
        "data.unknown-option", "max_step", "synthetic", options=options
    )
    said = refuses("data.unknown-option", "foo", "synthetic", options={"foo": 2})
    assert re.search(r": [a-z_, ]+, seed$", said)  # asked by --option
    said = refuses("data.unknown-option", "seed", "aime", options={"seed": 1, "question": "task"})
    assert said.endswith(": annotations, answer, field, question, steps, year")
    with refused("data.no-options", "seed"):
        call(lambda limit: limit, "task plain", {"limit": 1}, {"seed": 1})
    assert "1, not 0" in refuses("data.bad-limit", "limit", "gsm8k", limit=0)


def test_gsm8k_as_published(tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(PUBLISHED) + "\n")
    (example,) = load_task("gsm8k", file=str(file), limit=5).examples
    assert example.steps == ("16 - 3 = 13 eggs.", "Times 100 is $1300.")
    assert (example.id, example.answer) == ("gsm8k-test-0", "1300")
    said = refuses("data.other-row-count", str(file), "gsm8k", file=str(file))
    assert "has 1 rows" in said and "GSM8K test has 1,319" in said


@pytest.mark.parametrize("name", [*PUBLISHED_SETS, "prosqa", "prontoqa", "rows"])
def test_fields_by_other_names(tmp_path, name):
    file = tmp_path / "rows.json"
    row = {"task": "How many?", "labels": "7", "why": ["3+4=7"], "answer": "0"}
    file.write_text(json.dumps({"rows": [row], "others": [{"question": "?", "answer": "1"}]}))
    columns = {"question": "task", "answer": "labels", "steps": "why", "field": "rows"}
    (example,) = load_task(name, file=str(file), limit=5, options=columns).examples
    assert (example.question, example.answer, example.steps) == ("How many?", "7", ("3+4=7",))
    refuses("data.bad-option", "steps", name, file=str(file), options={**columns, "steps": 3})


def test_gsm8k_from_the_hub(monkeypatch):
    calls = []

    def load_dataset(*args, split):
        calls.append((*args, split))
        return Table([PUBLISHED] * 1319)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("kava.system.hub.is_reachable", lambda name, kind: True)
    task = load_task("gsm8k")
    assert calls == [("openai/gsm8k", "main", "test")] and len(task.examples) == 1319
    assert (task.name, task.version, task.split) == ("gsm8k", 1, "test")


@needs_real_data
def test_gsm8k_from_the_real_file():
    task = load_task("gsm8k", file=str(SHARED / "gsm8k_test.jsonl"))
    assert len(task.examples) == 1319 and task.examples[0].answer == "18"
    assert len({e.id for e in task.examples}) == 1319


def test_synthetic():
    task = load_task("synthetic", options={"count": 20, "seed": 3, "max_steps": 2})
    assert len(task.examples) == 20 and task.split == "test"
    assert task.source == "kava.data.synthetic (seed=3, max_steps=2)"
    assert (
        load_task("synthetic", limit=5, options={"seed": 3, "max_steps": 2}).examples[0]
        == (task.examples[0])
    )
    refuses("data.file-unwanted", "file", "synthetic", file="a.jsonl")
    refuses("data.bad-option", "synthetic", "synthetic", limit=1, options={"max_steps": 0})


# -- the other sets ------------------------------------------------------------------------------

COUNTS = {"gsm8k": 1319, "gsm8k_aug": 1319, "gsm_hard": 1319, "svamp": 1000, "multiarith": 180,
          "gsm8k_platinum": 1209, "gsm_plus": 10552, "asdiv": 2305, "math_500": 500,
          "aime": 30}  # fmt: skip
LOCAL = {"gsm8k": "gsm8k_test.jsonl", "gsm8k_aug": "gsm8k_aug_test.jsonl",
         "gsm_hard": "gsm_hard.jsonl", "svamp": "svamp.jsonl",
         "multiarith": "multiarith.jsonl"}  # fmt: skip
ON_THE_HUB = {  # what is asked for, and a row as it lies there
    "gsm8k": ([("openai/gsm8k", "main", "test")], PUBLISHED, "How many?", "1300"),
    "gsm8k_aug": (
        [("whynlp/gsm8k-aug", None, "test")],
        {"question": "q", "steps": ["<<1/2=.5>>"], "answer": ".5"}, "q", ".5",
    ),
    "gsm_hard": (
        [("reasoning-machines/gsm-hard", None, "train")],
        {"input": "q", "code": "def solution(): ...", "target": -9867630.0}, "q", "-9867630",
    ),
    "svamp": (
        [("ChilleD/SVAMP", None, "train"), ("ChilleD/SVAMP", None, "test")],
        {"Type": "Addition", "Answer": "145.0", "Equation": "( 5 + 140 )",
         "Body": "There are 5 cows. ", "Question": "How many?"},
        "There are 5 cows. How many?", "145",
    ),
    "multiarith": (
        [("ChilleD/MultiArith", None, "test")],
        {"question": " Adam bought 3 boxes", "final_ans": "9"}, " Adam bought 3 boxes", "9",
    ),
    "gsm8k_platinum": (
        [("madrylab/gsm8k-platinum", "main", "test")],
        {"question": "q", "answer": "a\n#### 1,300", "cleaning_status": "revised"}, "q", "1300",
    ),
    "gsm_plus": (
        [("qintongli/GSM-Plus", None, "test")],
        {"question": "q", "solution": "a", "answer": "18", "perturbation_type": "x"}, "q", "18",
    ),
    "asdiv": (
        [("EleutherAI/asdiv", None, "validation")],
        {"body": "Seven apples. ", "question": "How many?", "answer": "7 (apples)"},
        "Seven apples. How many?", "7",
    ),
    "math_500": (
        [("HuggingFaceH4/MATH-500", None, "test")],
        {"problem": "q", "solution": "a", "answer": "\\frac{1}{2}"}, "q", "\\frac{1}{2}",
    ),
    "aime": (
        [("HuggingFaceH4/aime_2024", None, "train")],
        {"id": None, "problem": "q", "solution": "a", "answer": "033"}, "q", "033",
    ),
}  # fmt: skip


def from_the_hub(monkeypatch, rows):
    """A Hub that has `rows` for each split that is asked for; what was asked."""
    asked = []

    def load_dataset(*args, split):
        asked.append((*args, split))
        return Table(rows)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("kava.system.hub.is_reachable", lambda name, kind: True)
    return asked


def test_every_task_is_tried_here():
    assert COUNTS.keys() == ON_THE_HUB.keys()
    generated = {"synthetic", "prontoqa", "gsm_symbolic", "reasoning_gym"}
    assert set(registry.names("tasks")) == {*COUNTS, *generated, "rows", "prosqa"}


def test_rows_of_ones_own(tmp_path):
    rows = [
        {"question": "q", "steps": ["<<1+1=2>>"], "answer": 2},
        {"question": "r", "answer": "3"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = load_task("rows", file=str(file))
    assert (task.name, task.source) == ("rows-mine", str(file))
    assert [(e.id, e.steps, e.answer) for e in task.examples] == [
        ("mine-0", ("<<1+1=2>>",), "2"), ("mine-1", (), "3"),
    ]  # fmt: skip
    assert len(load_task("rows", file=str(file), limit=1).examples) == 1
    refuses("data.file-needed", "file", "rows")
    nowhere = str(tmp_path / "no.jsonl")
    refuses("data.no-file", nowhere, "rows", file=nowhere)


@pytest.mark.parametrize("name", COUNTS)
def test_from_the_hub(name, monkeypatch):
    places, row, question, answer = ON_THE_HUB[name]
    asked = from_the_hub(monkeypatch, [row] * (COUNTS[name] // len(places)))
    task = load_task(name)
    assert asked == places and len(task.examples) == COUNTS[name]
    assert len({e.id for e in task.examples}) == COUNTS[name]
    assert (task.examples[0].question, task.examples[0].answer) == (question, answer)
    assert places[0][0] in task.source and task.version == 1

    from_the_hub(monkeypatch, [row] * 7)
    held = 7 * len(places)
    said = refuses("data.other-row-count", None, name)
    assert f" has {held} rows" in said and f" has {COUNTS[name]:,};" in said
    assert len(load_task(name, limit=5).examples) == 5


def test_floats_of_the_hub_keep_the_digits_that_were_written(monkeypatch):
    rows = [{"input": "q", "target": value} for value in (144.33333, 2e-05, -3244047.0999999996)]
    from_the_hub(monkeypatch, rows)
    answers = [e.answer for e in load_task("gsm_hard", limit=3).examples]
    assert answers == ["144.33333", "0.00002", "-3244047.0999999996"]


def test_validation_rows_of_gsm8k_aug_have_a_name_of_their_own(monkeypatch):
    row = ON_THE_HUB["gsm8k_aug"][1]
    asked = from_the_hub(monkeypatch, [row] * 500)
    task = load_task("gsm8k_aug", options={"split": "validation", "form": "natural"})
    assert asked == [("whynlp/gsm8k-aug-nl", None, "validation")]
    assert (task.name, task.split) == ("gsm8k_aug-validation", "validation")
    said = refuses("data.unknown-split", "valid", "gsm8k_aug", options={"split": "valid"})
    assert "'validation'?" in said
    refuses("data.unknown-split", "train", "gsm8k_aug", options={"split": "train"})


def test_aime_of_a_year(monkeypatch):
    asked = from_the_hub(monkeypatch, [{"problem": "q", "answer": 70}] * 30)
    task = load_task("aime", options={"year": 2025})
    assert (task.name, asked) == ("aime-2025", [("MathArena/aime_2025", None, "train")])
    refuses("data.unknown-year", "1999", "aime", options={"year": 1999})


def test_prosqa_as_published(tmp_path):
    row = {"question": "Every a is a b. Is Tom a b or a c?", "steps": ["Every a is a b."],
           "answer": "Tom is a b.", "edges": [[0, 1]], "root": 0, "w": ["Tom"]}  # fmt: skip
    (tmp_path / "prosqa_test.json").write_text(json.dumps([row, row]))
    task = load_task("prosqa", file=str(tmp_path / "prosqa_test.json"))
    assert [(e.steps, e.answer) for e in task.examples] == [
        (("Every a is a b.",), "Tom is a b.")
    ] * 2
    assert score("The answer is: Tom is a b.", "Tom is a b.", ("string",))["string"]
    refuses("data.file-needed", "file", "prosqa")


def solved(question):
    """Follow the rules of a question from its fact to its statement, word by word."""
    told, _, statement = question.partition(" True or false: ")
    *rules, fact = [text.split() for text in told.rstrip(".").split(". ")]
    concept, known = fact[-1], {}
    for words in rules:
        subject = words[0] if words[0] not in ("Every", "Each", "All") else words[1]
        plural = "are" in words
        negated, what = "not" in words, words[-1].removesuffix("es" if plural else "")
        known.setdefault(subject.lower().removesuffix("es" if plural else ""), []).append(
            (what, negated)
        )
    said = statement.rstrip(".").split()
    while concept:
        for what, negated in known.get(concept, ()):
            if what == said[-1]:
                return str(negated == ("not" in said))
        onward = [what for what, _ in known.get(concept, ()) if what in known]
        concept = onward[0] if onward else None
    return None


def test_prontoqa_is_generated():
    parts = {split: prontoqa.generate(split, 60) for split in ("train", "validation", "test")}
    questions = [example.question for part in parts.values() for example in part]
    assert len(set(questions)) == 180
    for example in parts["train"]:
        assert solved(example.question) == example.answer, example.question
        assert len(example.steps) == 2 * 3 + 1
        assert all(step in example.question for step in example.steps[::2][:1])
    assert 15 < sum(example.answer == "True" for example in parts["train"]) < 45
    task = load_task("prontoqa", limit=5, options={"hops": 5})
    assert len(task.examples) == 5 and len(task.examples[0].steps) == 11
    assert len(load_task("prontoqa").examples) == 500
    refuses("data.bad-option", None, "prontoqa", options={"hops": 9})
    refuses("data.unknown-option", "hop", "prontoqa", options={"hop": 3})


def test_prontoqa_from_a_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"question": "q", "answer": "True"}]))
    task = load_task("prontoqa", file=str(tmp_path / "a.json"))
    assert [(e.question, e.answer) for e in task.examples] == [("q", "True")]


@needs_real_data
@pytest.mark.parametrize("name", LOCAL)
def test_from_the_real_file(name):
    task = load_task(name, file=str(SHARED / LOCAL[name]))
    rows = [json.loads(line) for line in (SHARED / LOCAL[name]).read_bytes().splitlines()]
    rows = [r for r in rows if name != "multiarith" or r["split"] == "test"]
    assert len(task.examples) == COUNTS[name] == len(rows)
    assert [(e.id, e.question) for e in task.examples] == [(r["id"], r["question"]) for r in rows]
    if name != "gsm8k_aug":  # it has fractions
        assert [Decimal(e.answer) for e in task.examples] == [Decimal(r["answer"]) for r in rows]
        assert not any("e" in e.answer.lower() for e in task.examples)


@needs_real_data
def test_published_forms_equal_their_local_copies(tmp_path):
    """PAL's `input` and `target`, numbers as floats; SVAMP.json, one list, body and question."""
    hard = [json.loads(line) for line in (SHARED / LOCAL["gsm_hard"]).read_bytes().splitlines()]
    lines = [json.dumps({"input": r["question"], "target": float(r["answer"])}) for r in hard]
    (tmp_path / "gsmhardv2.jsonl").write_text("\n".join(lines))
    svamp = [json.loads(line) for line in (SHARED / LOCAL["svamp"]).read_bytes().splitlines()]
    published = [
        {"ID": r["id"].removeprefix("svamp-"), "Body": r["body"], "Question": r["ask"],
         "Equation": r["equation"], "Answer": float(r["answer"]), "Type": r["type"]}
        for r in svamp
    ]  # fmt: skip
    (tmp_path / "SVAMP.json").write_text(json.dumps(published, indent=4))
    for name, file in (("gsm_hard", "gsmhardv2.jsonl"), ("svamp", "SVAMP.json")):
        one = load_task(name, file=str(tmp_path / file)).examples
        other = load_task(name, file=str(SHARED / LOCAL[name])).examples
        assert [(e.question, e.answer) for e in one] == [(e.question, e.answer) for e in other]
    assert [e.id for e in one] == [e.id for e in other]


def test_rows_without_steps_or_with_others_splits(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"question": "a", "final_ans": 2e-05, "split": "test"}\n'
        '{"question": "b", "answer": "7", "split": "train"}\n'
        '{"question": "c", "answer": 144.33333, "split": "test"}\n'
    )
    examples = load_task("multiarith", file=str(file), limit=9).examples
    assert [(e.id, e.question, e.answer, e.steps) for e in examples] == [
        ("multiarith-0", "a", "0.00002", ()),
        ("multiarith-1", "c", "144.33333", ()),
    ]
    said = refuses("data.other-row-count", str(file), "multiarith", file=str(file))
    assert "has 2 rows" in said and "MultiArith test has 180" in said
    file.write_text('{"question": "a"}\n')
    said = refuses("data.missing-field", "answer", "svamp", file=str(file), limit=1)
    assert "line 1: " in said and said.endswith(": question")


def test_a_json_file_may_be_one_list(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('\n [{"question": "a", "answer": "1"},\n {"question": "b", "answer": 2.0}]')
    examples = load_task("gsm8k", file=str(file), limit=9).examples
    assert [(e.question, e.answer) for e in examples] == [("a", "1"), ("b", "2")]
    for text, code, key in (
        ("[1]", "data.not-an-object", f"{file}, row 1"), ("[{", "data.bad-json", str(file)),
    ):  # fmt: skip
        file.write_text(text)
        refuses(code, key, "gsm8k", file=str(file), limit=9)


NUMBERS = {"1.0": "1", "2e-05": "0.00002", "-9867630.0": "-9867630", "144.33333": "144.33333",
           "2.50": "2.50", "1e23": "1" + 23 * "0", "-0.0": "0", "1E+5": "100000",
           "1e999999999": "1E+999999999"}  # fmt: skip


@pytest.mark.parametrize(("written", "text"), NUMBERS.items())
def test_a_number_becomes_its_digits(written, text):
    assert plain_number(Decimal(written)) == text


@given(st.floats(allow_nan=False, allow_infinity=False) | st.decimals(allow_nan=False))
def test_no_number_is_rounded(value):
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    assert Decimal(plain_number(exact)) == exact


def test_options_of_a_task_are_read():
    assert read_options("eval", ["split=validation", "count=3"]) == {
        "split": "validation", "count": 3,
    }  # fmt: skip
    assert read_options("eval", ["rate=1e-4"]) == {"rate": 1e-4}  # as in a recipe
    for word, code, key, values in (
        ("split", "data.bad-option-word", "split", ("eval: --option split: ",)),
        ("a=[", "recipe.bad-yaml", "a", ("eval: --option a: ", "'['")),
        ("a=2024-13-45", "recipe.not-of-its-type", "a", ("'2024-13-45'", "timestamp")),
    ):
        with refused(code, key) as caught:
            read_options("eval", [word])
        for value in values:
            assert value in str(caught.value)
