"""`kava score`: counts by hand, matched by id or by order, and what does not match is named."""

import json
import random

import pytest
from refusals import refused
from typer.testing import CliRunner

from kava.cli import app
from kava.errors import KavaError
from kava.evaluation.answers import RULES, score

GOLD = {"a": "18", "b": "0.4", "c": "-7", "d": "1800"}
TEXTS = {
    "a": "The answer is: 18",  # every rule
    "b": "The answer is: 2/5",  # numeric, math_verify
    "c": "so it is -7",  # last_number, math_verify
    "d": "#### 18 hundred",  # none
}
COUNTS = {"numeric": 2, "last_number": 2, "string": 1, "math_verify": 3}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    rows = [{"id": key, "question": f"q {key}", "answer": gold} for key, gold in GOLD.items()]
    return write(tmp_path / "rows.jsonl", rows)


def run(*words):
    done = CliRunner().invoke(app, ["score", *map(str, words)])
    if isinstance(done.exception, KavaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def with_ids(order="abcd"):
    return [{"id": key, "prediction": TEXTS[key]} for key in order]


def test_counts_by_hand():
    said = {key: score(TEXTS[key], GOLD[key]) for key in GOLD}
    assert {rule: sum(s[rule] for s in said.values()) for rule in RULES} == COUNTS


def test_by_id_in_any_order_and_by_order_without_ids(data, tmp_path):
    order = list("abcd")
    random.Random(0).shuffle(order)
    assert order != sorted(order)
    for rows in (with_ids(order), [{"prediction": TEXTS[key]} for key in "abcd"]):
        file = write(tmp_path / "p.jsonl", rows)
        told = json.loads(run(file, "--data", data, "--json"))
        assert (told["n"], told["correct"]) == (4, COUNTS)
        assert told["note"].startswith("1 of 4 predictions have neither")
    file = write(tmp_path / "p.jsonl", with_ids("ab"))
    assert json.loads(run(file, "--data", data, "--limit", 2, "--json"))["correct"] == {
        "numeric": 2, "last_number": 1, "string": 1, "math_verify": 2,
    }  # fmt: skip


def test_the_table(data, tmp_path):
    said = run(write(tmp_path / "p.jsonl", with_ids()), "--data", data)
    lines = [line.split() for line in said.splitlines()]
    assert ["numeric", "*", "2", "50.00", "±", "25.00"] in lines  # sqrt(.5 * .5 / 4)
    assert ["math_verify", "3", "75.00", "±", "21.65"] in lines
    assert "n = 4" in said


def test_right_answers_without_a_number_are_counted(tmp_path):
    rows = [{"question": f"q{i}", "answer": gold} for i, gold in enumerate(("18", "yes", "no"))]
    data = write(tmp_path / "rows.jsonl", rows)
    texts = [{"prediction": f"The answer is: {text}"} for text in ("18", "yes", "yes")]
    file = write(tmp_path / "p.jsonl", texts)
    told = json.loads(run(file, "--data", data, "--json"))
    assert told["correct"]["numeric"] == 1 and told["correct"]["string"] == 2
    assert told["note"].startswith("2 of 3 right answers are not plain numbers, such as 'yes' and")
    assert "2 of 3 right answers are not plain numbers" in run(file, "--data", data)


def changed(rows, index, **fields):
    row = {key: value for key, value in {**rows[index], **fields}.items() if value is not None}
    return [*rows[:index], row, *rows[index + 1 :]]


BAD = {
    "an unknown id": (
        changed(with_ids(), 2, id="x"), "evaluation.unknown-id", "x", ("line 3: ", "'x'", "'a'"),
    ),
    "an id twice": (
        changed(with_ids(), 2, id="a"), "data.repeated-id", "a", ("line 3: ", "'a'", "line 1"),
    ),
    "a missing id": (
        with_ids("abd"), "evaluation.missing-predictions", "c", ("3 rows", "has 4;", "'c'"),
    ),
    "too many ids": ([*with_ids(), *with_ids("a")], "data.repeated-id", "a", ("line 5: ", "'a'")),
    "too few rows": (
        [{"prediction": "1"}] * 3, "evaluation.uneven-rows", None, ("3 rows", "has 4;"),
    ),
    "too many rows": (
        [{"prediction": "1"}] * 5, "evaluation.uneven-rows", None, ("5 rows", "has 4;"),
    ),
    "ids in another order, one gone": (
        changed(with_ids("abdc"), 0, id=None), "evaluation.other-order", "d",
        ("line 3: ", "'d'", "'c'"),
    ),
    "no prediction": (
        changed(with_ids(), 1, prediction=None), "data.missing-field", "prediction", ("line 2: ",),
    ),
    "a number": (
        changed(with_ids(), 1, prediction=7), "data.bad-field", "prediction", ("line 2: ", "not 7"),
    ),
    "nothing": ([], "data.no-rows", None, ()),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "code", "key", "values"), BAD.values(), ids=BAD.keys())
def test_what_does_not_match_is_named(rows, code, key, values, data, tmp_path):
    file = write(tmp_path / "p.jsonl", rows)
    with refused(code, key or str(file)) as caught:
        run(file, "--data", data)
    assert all(value in str(caught.value) for value in values) and "\n" not in str(caught.value)


def test_right_answers_come_from_one_place(data, tmp_path):
    file = write(tmp_path / "p.jsonl", with_ids())
    for words, code, key in (
        ((), "evaluation.task-or-data", "--task"),
        (("--task", "gsm8k", "--data", data), "evaluation.task-or-data", "--task"),
        (("--data", data, "--file", data), "evaluation.options-of-task", "--data"),
        (("--task", "gsm8k", "--file", data), "data.other-row-count", str(data)),
    ):
        with refused(code, key):
            run(file, *words)
    said = run(file, "--task", "gsm8k", "--file", data, "--limit", 4, "--json")
    assert json.loads(said)["correct"] == COUNTS


def scored(tmp_path, texts, *words, golds=("18", "19")):
    rows = [{"question": f"q{i}", "answer": gold} for i, gold in enumerate(golds)]
    data = write(tmp_path / "rows.jsonl", rows)
    file = write(tmp_path / "p.jsonl", [{"prediction": text} for text in texts])
    return json.loads(run(file, "--data", data, "--json", *words))


@pytest.mark.parametrize("text", ("The answer is {}.", r"So \boxed{{{}}}.", "Final Answer: {}"))
def test_predictions_without_a_marker_are_counted_with_the_rules_that_read_them(text, tmp_path):
    told = scored(tmp_path, [text.format(18), text.format(19)])
    assert told["correct"]["numeric"] == 0 and told["correct"]["last_number"] == 2
    assert told["note"].startswith("2 of 2 predictions have neither")
    assert "'last_number' 2" in told["note"] and "'string'" not in told["note"]
    told = scored(tmp_path, [text.format(17), "The answer is: 19"])
    assert "1 of 2 predictions" in told["note"] and "no rule" in told["note"]


def test_answers_after_the_first_are_counted(tmp_path):
    more = "a\n#### {}\n\nQuestion: Bob has 3.\nAnswer: 3\n#### 3"
    told = scored(tmp_path, [more.format(18), more.format(20)])
    assert told["correct"]["numeric"] == 0
    assert told["note"].startswith("2 of 2 predictions state another answer after their first")
    assert "in 1 of them the first is right" in told["note"]
    assert "note" not in scored(tmp_path, ["#### 18\nThe answer is: 18", "The answer is: 19"])


def sample(index, text, name="strict-match", **fields):
    document = {"question": f"q{index}", "answer": "a\n#### 18"}
    return {"doc_id": index, "doc": document, "resps": [[text]], "filter": name, **fields}


def test_samples_of_lm_evaluation_harness(tmp_path):
    data = write(tmp_path / "rows.jsonl", [{"question": f"q{i}", "answer": "18"} for i in range(3)])
    texts = ["#### 18", "#### 17", "#### 18"]
    both = [sample(i, t, name) for name in ("strict", "flexible") for i, t in enumerate(texts)]
    for rows in (both, both[::-1], both[:3]):
        file = write(tmp_path / "samples.jsonl", rows)
        assert json.loads(run(file, "--data", data, "--json"))["correct"]["numeric"] == 2
    filtered = [{**row, "filtered_resps": [row["resps"][0][0]]} for row in both]
    file = write(tmp_path / "samples.jsonl", filtered)
    told = run(file, "--data", data, "--json", "--field", "filtered_resps")
    assert json.loads(told)["correct"]["numeric"] == 2
    for rows, code, key in (
        ([*both, sample(3, "x")], "evaluation.unknown-id", "3"),
        (both[1:3], "evaluation.missing-predictions", "rows-0"),
        ([*both, sample(1, "other", "third")], "evaluation.several-predictions", "1"),
        ([sample(0, "x", doc={"question": "another"})], "evaluation.other-question", "0"),
        ([sample("0", "x")], "data.bad-field", "doc_id"),
        ([{**sample(0, "x"), "resps": [["a", "b"]]}], "data.bad-field", "resps"),
        ([*both, {"prediction": "x"}], "evaluation.mixed-rows", None),
    ):
        with refused(code, key):
            run(write(tmp_path / "samples.jsonl", rows), "--data", data)


def test_the_text_may_be_in_any_field(tmp_path):
    data = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "18"}])
    inside = {"choices": [{"message": {"content": "#### 18"}}]}
    for field, row in (
        ("response", {"response": "#### 18"}),
        ("a.b", {"a.b": "#### 18"}),
        ("outputs", {"outputs": ["#### 18"]}),
        ("body.choices.0.message.content", {"body": inside}),
    ):
        file = write(tmp_path / "p.jsonl", [row])
        assert json.loads(run(file, "--data", data, "--json", "--field", field))["correct"][
            "numeric"
        ] == 1  # fmt: skip
        with refused("data.missing-field", "prediction") as caught:
            run(file, "--data", data)
        assert "--field" in str(caught.value)
        with refused("data.missing-field", "body.choices.9"):
            run(file, "--data", data, "--field", "body.choices.9")
