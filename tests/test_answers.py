"""Reading an answer from a text: by hand, by property, and on every real gold answer."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kava.evaluate.answers import RULES, after_marker, read_number, score

SHARED = Path(__file__).parents[2] / "shared" / "data"

NUMBERS = {
    "18": 18,
    "18.": 18,
    "5.5.": Fraction(11, 2),
    ".5": Fraction(1, 2),
    "-.5": Fraction(-1, 2),
    "1,234": 1234,
    "1,234,567.50": Fraction(2469135, 2),
    "$1,234.": 1234,
    "-$5": -5,
    "$-5": -5,
    "- 5": 5,  # a dash, not a minus
    "−7": -7,
    "£ 3 each": 3,
    r"\$4": 4,
    "50%": 50,
    "2/5": Fraction(2, 5),
    "1 / 4 of it": Fraction(1, 4),
    "1.5e3": 1500,
    "2.0107e-06": Fraction(20107, 10**10),
    "18eggs": 18,
    "x-5": 5,
    "(-5)": -5,
    "3-4": 3,
    "1, 2": 1,
    "1,2345": 1,  # no thousands comma
    "5 e": 5,
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_read_number(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["", "none", "1/0", "1e99999", "9" * 5000, "-", "$", ".", "٣"])
def test_no_number(text):
    assert read_number(text) is None
    assert not any(score(f"The answer is: {text}", "1").values())


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("The answer is: 18", "18", "numeric last_number string"),
        ("<<1+1=2>> The answer is: 18.", "18", "numeric last_number"),
        ("#### 1,800", "1800", "numeric last_number"),
        ("#### 18.0", "18", "numeric last_number"),
        ("The answer is: 3 The answer is: 4", "4", "numeric last_number string"),
        ("THE ANSWER IS:4 of 9", "4", "numeric"),
        ("it is 4", "4", "last_number"),
        ("The answer is: .5", "0.5", "numeric"),
        ("The answer is: 2/5", "2/5", "numeric string"),
        ("The answer is: 0.4", "2/5", "numeric last_number"),
        ("The answer is:", "4", ""),
        ("The answer is: 50", "5", ""),
        ("The answer is: 5.5", "5", ""),
        ("", "5", ""),
    ],
)
def test_rules(text, gold, right):
    assert score(text, gold) == {rule: rule in right.split() for rule in RULES}


def test_marker():
    assert after_marker("4") is None
    assert after_marker("#### 3 the answer is : 4 \n") == "4"


SIGNS = st.sampled_from(["", "$", "€", "£ "])
TAILS = st.sampled_from(["", ".", "%", " apples", ", or 7", "\n\n12", " (of 3)", "!", "kg", "</s>"])
VALUES = st.one_of(
    st.integers(-(10**15), 10**15).map(Decimal),
    st.decimals(-(10**9), 10**9, places=2),
    st.decimals(-1, 1, places=7),
)


@given(VALUES, st.booleans(), SIGNS, TAILS)
def test_any_number_is_read_back_exactly(value, commas, sign, tail):
    written = f"{abs(value):{',' if commas else ''}f}"
    text = f"1 + 1 = 2 The answer is: {'-' if value < 0 else ''}{sign}{written}{tail}"
    assert RULES["numeric"](text, f"{value:f}")
    assert not RULES["numeric"](text, f"{value + 1:f}")


@given(st.integers(-99, 99), st.integers(1, 99))
def test_fractions_are_exact(above, below):
    assert read_number(f"{above}/{below}") == Fraction(above, below)


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.sampled_from(["", "."]))
def test_no_gold_matches_a_longer_number(gold, more, point):
    # Zero is left out in front: 05 is 5.
    longer = f"{gold or 1}{point}{more}"
    assert not any(score(f"The answer is: {longer}", str(gold or 1)).values())


@given(st.text(max_size=60), st.text(max_size=10))
def test_never_raises(text, gold):
    assert set(score(text, gold)) == set(RULES)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data (../shared/data) is not here")
def test_every_real_answer_is_a_number():
    files = SHARED.glob("*.jsonl")
    rows = [json.loads(line) for f in files for line in f.read_bytes().splitlines()]
    unread = [r["id"] for r in rows if not RULES["numeric"](f"#### {r['answer']}", r["answer"])]
    assert unread == [] and len(rows) > 20_000
    # Nothing of an answer is left unread: it equals what Python makes of the whole text.
    assert all(read_number(r["answer"]) == Fraction(r["answer"]) for r in rows)
