"""Reading an answer from a text: by hand, by property, against a slow oracle, on every real one."""

import json
import os
import re
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from kava.data.answers import canonical_form, read_answer, read_number
from kava.evaluation import symbolic
from kava.evaluation.answers import (
    RULES,
    after_marker,
    math_verify,
    note_on_unreadable_golds,
    numeric_match,
    score,
)
from kava.evaluation.score_file import score_file, table

OF_OURS = ("numeric", "last_number", "string")
DOCS = Path(__file__).parents[1] / "docs" / "answers.md"
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
    "- 5": 5,  # a dash, not a minus: an item of a list
    "- $5": 5,
    "–18": -18,  # an en dash
    "‑18": -18,
    "$–18": -18,
    "– 18": 18,
    "7–18": 7,
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
    "1,2345": 12345,  # commas are removed (spec)
    "1,234,56": 123456,
    "12,34": 1234,
    "0,5": 5,
    "3 1/2": 3,  # the first number
    "5 e": 5,
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_read_number(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["", "none", "1/0", "1e99999", "9" * 5000, "-", "$", "."])
def test_no_number(text):
    assert read_number(text) is None
    assert not any(score(f"The answer is: {text}", "1", OF_OURS).values())


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("The answer is: 18", "18", "numeric last_number string math_verify"),
        ("<<1+1=2>> The answer is: 18.", "18", "numeric last_number math_verify"),
        ("#### 1,800", "1800", "numeric last_number math_verify"),
        ("#### 18.0", "18", "numeric last_number math_verify"),
        ("The answer is: 3 The answer is: 4", "4", "numeric last_number string math_verify"),
        ("THE ANSWER IS:4 of 9", "4", "numeric"),
        ("it is 4", "4", "last_number math_verify"),
        ("The answer is: .5", "0.5", "numeric math_verify"),
        ("The answer is: 2/5", "2/5", "numeric string math_verify"),
        ("The answer is: 0.4", "2/5", "numeric last_number math_verify"),
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


def test_right_answers_without_a_number_are_said():
    assert (
        note_on_unreadable_golds(["18", "-.5", "2/5", "5 eggs"]) is None
        and note_on_unreadable_golds([]) is None
    )
    note = note_on_unreadable_golds(["18", "yes", "no", "4", "yes", r"\frac{1}{2}", "0,5"])
    assert note.startswith("5 of 7 ") and "'yes' and 'no'" in note and "'numeric'" in note
    assert (
        "'math_verify' reads 1 " in note and "'string' compares 3 " in note and " 1 other" in note
    )
    assert score("The answer is: yes", "yes", OF_OURS) == {
        "numeric": False, "last_number": False, "string": True
    }  # fmt: skip


F = Fraction
GOLDS = {
    "number": {
        "18": 18, "18.": 18, "-7": -7, "−7": -7, "+5": 5, ".5": F(1, 2), "2/5": F(2, 5),
        "1.5e3": 1500, "$1,234.50": F(2469, 2), "-$5": -5, "$-5": -5, "50%": 50, r"18\%": 18,
        "5 eggs": 5, "18eggs": 18, "5 km/h": 5, "12 m^2": 12, "12 cm²": 12, "$5 per hour": 5,
        "1,234": 1234, "12,34,567": 1234567, "1 234": 1234, "1\u202f234": 1234, "9\u00a0500": 9500,
        "1'234": 1234, "1’234": 1234, "9{,}500": 9500, r"9,\!500": 9500, r"9\,500": 9500,
        "1.234.567": 1234567, "١٨": 18, "１８": 18, "१८": 18, "١٬٢٣٤٫٥": F(2469, 2),
        "3 1/2": F(7, 2), "3½": F(7, 2), "½": F(1, 2), "3 1/2 cups": F(7, 2), "Rs. 500": 500,
        "$18$": 18, r"\(18\)": 18, r"\[18\]": 18, r"\boxed{18}": 18, r"$\boxed{-18}$.": -18,
        r"18\text{ cm}": 18, r"5\ \text{meters}": 5, r"90^{\circ}": 90, r"90^\circ": 90,
        "**18**": 18,
    },
    "expression": [
        r"\frac{1}{2}", r"\dfrac12", r"$\frac{1}{2}$", r"2\sqrt{3}", r"\sqrt{2}", "√2", "2^{10}",
        "10^5", "x²", "(1,2)", r"\left(3, \frac{\pi}{2}\right)", "[0,1)", r"\{1,2\}", "x = 5", "5x",
        r"2\pi", "10-5=5", "7-18", "1, 2", "1,2,3", "5!", "2×3", r"3 \times 10^5", "sin(5)",
    ],
    "words": [
        "yes", "Monday", "C", "(C)", "True", r"\text{even}", r"\text{(C)}", "twenty-five", "3:30",
        "3:30 pm", "5 p.m.", "5 am", "3:4", "2024-01-05", "12/05/2023", "5 million", "2 dozen",
        "about 5", "June 5", "5 and a half", "5 apples and 6 pears", "5 or 6", "18 of the 20 eggs",
    ],
    "unreadable": [
        "", "0,5", "12,34", "1,2345", "1.234,5", "1/0", "3 5/2", "- 5", "1 2", "1e9999", "9" * 1200,
        "16-3-4 = 9\n#### 18", "The answer is: 18",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", GOLDS)
def test_what_a_right_answer_is(kind):
    golds = GOLDS[kind]
    values = golds if isinstance(golds, dict) else dict.fromkeys(golds)
    for gold, value in values.items():
        assert (read_answer(gold).kind, read_answer(gold).value) == (kind, value), gold


@pytest.mark.parametrize("kind", [kind for kind in GOLDS if kind != "number"])
def test_what_is_not_a_number_is_never_compared_by_a_part(kind):
    for gold in GOLDS[kind]:
        for part in [gold, *re.findall(r"[0-9]+", gold[:40])]:
            said = score(f"The answer is: {part}", gold, ("numeric", "last_number"))
            assert said == {"numeric": False, "last_number": False}, (gold, part)


def test_every_way_to_write_a_number_is_read_in_a_prediction_too():
    for gold, value in GOLDS["number"].items():
        assert numeric_match(f"The answer is: {gold}", gold), gold
        assert numeric_match(f"#### {value}", gold) and not numeric_match(
            f"#### {value + 1}", gold
        ), gold


BY_MATH_VERIFY = (
    (r"\frac{1}{2}", r"\frac{1}{2}", r"\frac{1}{3}"),
    (r"2\sqrt{3}", r"2\sqrt{3}", r"2\sqrt{2}"),
    ("2^{10}", "1024", "2"),
    ("(1,2)", "(1, 2)", "(1, 3)"),
    ("2", "2", r"2\sqrt{3}"),
    ("9{,}500", "9{,}500", "9"),
)


@pytest.mark.parametrize(("gold", "right", "wrong"), BY_MATH_VERIFY)
def test_math_verify_reads_an_expression_as_a_whole(gold, right, wrong):
    for marker in ("The answer is:", "####"):
        assert math_verify(f"{marker} {right}", gold)
        assert not math_verify(f"{marker} {wrong}", gold)


def test_canonical_form():
    changed = {"1,234": "1234", "1\u202f234": "1234", "9{,}500": "9500", "-1'234.5": "-1234.5",
               "１８": "18", "١٨": "18"}  # fmt: skip
    for text in (
        "18",
        "18.0",
        ".5",
        "12,34",
        "0,5",
        "$1,234",
        "5 eggs",
        "3:30",
        "½",
        r"\boxed{18}",
    ):
        changed[text] = text
    assert {text: canonical_form(text) for text in changed} == changed


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
    assert not any(score(f"The answer is: {longer}", str(gold or 1), OF_OURS).values())


@given(st.text(max_size=60), st.text(max_size=10))
def test_never_raises(text, gold):
    assert set(score(text, gold)) == set(RULES)


# A value and a way to write it that means it; what stands behind it does not matter.
WHOLE = st.integers(1, 10**12)
RENDERED = st.one_of(
    WHOLE.map(lambda n: (Fraction(n), f"{n:,}")),
    WHOLE.map(lambda n: (Fraction(n), f"${n:,}.")),
    WHOLE.map(lambda n: (Fraction(n), f"{n} %")),
    WHOLE.map(lambda n: (Fraction(n), f"{n}km, all told")),
    WHOLE.map(lambda n: (Fraction(-n), f"−{n}")),
    WHOLE.map(lambda n: (Fraction(-n), f"-€{n:,}")),
    WHOLE.map(lambda n: (Fraction(-n), f"£-{n}")),
    st.integers(1, 10**6).map(lambda n: (Fraction(n, 10**6), f".{n:06}" if n < 10**6 else "1.0")),
    st.tuples(WHOLE, st.integers(1, 999)).map(lambda p: (Fraction(*p), f"{p[0]}/{p[1]} of it")),
    st.tuples(st.integers(1, 9), st.integers(0, 99), st.integers(-20, 20)).map(
        lambda p: (Fraction(f"{p[0]}.{p[1]:02}e{p[2]}"), f"{p[0]}.{p[1]:02}e{p[2]:+03}")
    ),
)
MARKERS = st.sampled_from(["The answer is:", "the answer is :", "THE ANSWER IS:", "####"])
WORDS = st.text("abc xyz 0123456789.,-$", max_size=20)


@given(RENDERED, MARKERS, WORDS)
def test_every_rendering_reads_back_exactly_after_the_last_marker(rendered, marker, before):
    value, written = rendered
    text = f"{before} The answer is: 1234567 {marker} {written}"
    assert numeric_match(text, str(value))
    assert not numeric_match(text, str(value + 1))
    assert not numeric_match(f"{text} {marker}", str(value))  # the last marker has nothing


@given(RENDERED, WORDS)
def test_without_a_marker_numeric_is_wrong(rendered, before):
    value, written = rendered
    assert not numeric_match(f"{before} {written}", str(value))


class Oracle:
    """`numeric`, character by character: one position, moved by hand."""

    def __init__(self, text):
        self.text, self.at = text, 0

    def look(self, ahead=0):
        place = self.at + ahead
        return self.text[place] if 0 <= place < len(self.text) else ""

    def digits(self):
        begin = self.at
        while self.look() and self.look() in "0123456789":
            self.at += 1
        return self.text[begin : self.at]

    def minus(self):
        before = self.look(-1)
        if self.look() not in list("-−‐‑‒–") or before == ")" or before.isalnum() or before == "_":
            return False
        self.at += 1
        return True

    def currency(self):
        sign = 1 if self.look() == "\\" else 0
        if self.look(sign) and self.look(sign) in "$€£¥":
            self.at += sign + 1
            self.at += self.look().isspace()

    def unsigned(self):
        whole = self.digits()
        while whole and self.look() == "," and self.look(1) and self.look(1) in "0123456789":
            self.at += 1
            whole += self.digits()
        if self.look() == "." and (whole or self.look(1).isdigit()):
            self.at += 1
            part = self.digits()
            return Fraction(int((whole + part) or 0), 10 ** len(part))
        return Fraction(int(whole)) if whole else None

    def power(self):
        begin = self.at
        if self.look() and self.look() in "eE":
            self.at += 1
            sign = self.look()
            self.at += sign in ("-", "+")
            written = self.digits()
            if written:
                return -int(written) if sign == "-" else int(written)
        self.at = begin
        return 0

    def number_here(self):
        """The number that begins here; False if none does, None if it is no number."""
        negative = self.minus()
        self.currency()
        negative = self.minus() or negative
        value = self.unsigned()
        if value is None:
            return False
        power = self.power()
        if abs(power) > 999:
            return None
        value *= Fraction(10) ** power
        self.at += self.look().isspace() and self.look(1) == "/"
        if self.look() == "/":
            self.at += 1
            self.at += self.look().isspace()
            below = self.unsigned()
            if below == 0:
                return None
            value /= below or 1
        return -value if negative else value


def slow_number(text):
    for begin in range(len(text)):
        oracle = Oracle(text)
        oracle.at = begin
        value = oracle.number_here()
        if value is not False:
            return value
    return None


PIECES = [*"0123-−–$/ .,x()%_e", ",123", ",123,4", "12", "e5", "E-2", "\\$", ".5", "/4"]


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_read_number_agrees_with_a_slow_oracle(text):
    assert read_number(text) == slow_number(text)


def test_the_oracle_knows_the_hand_made_ones():
    assert {text: slow_number(text) for text in NUMBERS} == NUMBERS


# -- math-verify ---------------------------------------------------------------------------------

LATEX = {
    r"The answer is: $\frac{2}{5}$": "0.4",
    "no marker, so $x = 7$": "7",
    "The answer is:-.5": "no",
    "#### 1/2": "-.5",
    "So \\boxed{12} it is": "12",
    "The answer is: 12 and then 13": "12",
}


def test_math_verify_says_what_the_library_says_in_the_main_thread():
    from math_verify import parse, verify

    for text, gold in LATEX.items():
        read = after_marker(text) or text
        assert math_verify(text, gold) == verify(parse(gold), parse(read)), text


def test_math_verify_is_the_same_from_any_thread():
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(math_verify, list(LATEX) * 5, list(LATEX.values()) * 5))
    assert got == [math_verify(text, gold) for text, gold in LATEX.items()] * 5


def test_a_gold_without_its_zero_or_with_a_power_is_written_out():
    assert math_verify("The answer is: -0.5", "-.5")
    assert math_verify("The answer is: 0.000125", "1.25e-4")
    assert not math_verify("The answer is: 1.25", "1.25e-4")


HOSTILE = {
    "tower": "9^9^9^9",
    "digits": "7" * 10_000,
    "deep": r"\frac{1}{" * 3_000,
    "brackets": "(" * 5_000,
    "rambling": "and 5 + 3 = 8 so " * 3_000,
    "dollars": "$" * 9_999,
    "control": "\0\n\ud800 5",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_wrong_and_the_next_is_right(text):
    assert not math_verify(f"The answer is: {text}", "18")
    assert math_verify("The answer is: 18", "18")


ENDLESS = r"$\int_0^1 \sin(x^x) \cos(\exp(x)) dx$"


def test_time_is_bounded_and_counted_in_processor_time():
    assert math_verify("#### 5", "5")  # it is running
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not math_verify(f"The answer is: {ENDLESS}", "18")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 1 <= used < 4  # one second, and its start
    assert math_verify("#### 5", "5")


def test_the_clock_ends_a_process_that_uses_no_processor(monkeypatch):
    assert math_verify("#### 5", "5")
    monkeypatch.setattr(symbolic, "WALL_SECONDS", 0.2)
    stopped = symbolic._worker.process
    os.kill(stopped.pid, signal.SIGSTOP)
    with symbolic.count_timeouts() as judged:
        assert not math_verify("#### 5", "5")
    assert (judged.timed_out, judged.skipped) == (1, 0) and stopped.returncode == -signal.SIGKILL
    monkeypatch.undo()
    assert math_verify("#### 5", "5")


def test_the_process_gets_nothing_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(symbolic, "_worker", None)
    assert math_verify("#### 5", "5")
    given = Path(f"/proc/{symbolic._worker.process.pid}/environ")
    if not given.exists():
        pytest.skip("this system has no /proc")
    names = {entry.partition(b"=")[0] for entry in given.read_bytes().split(b"\0") if entry}
    symbolic._worker.close()
    allowed = {b"PYTHONPATH", b"PYTHONSAFEPATH", b"PYTHONHASHSEED", b"PYTHONWARNINGS"}
    assert names <= allowed | {b"LD_LIBRARY_PATH", b"DYLD_LIBRARY_PATH"}


class Slow:
    """A process that a question ends by its time."""

    owner, stalled = os.getpid(), False

    def ask(self, text, gold):
        return None

    def close(self):
        return -signal.SIGPROF


def test_after_many_time_outs_no_more_are_judged(tmp_path, monkeypatch):
    """What a model answers can be made to take hours; how many were not judged is reported."""
    started = []
    monkeypatch.setattr(symbolic, "_worker", None)
    monkeypatch.setattr(symbolic, "_Worker", lambda: started.append(1) or Slow())
    rows = [{"id": str(i), "question": "w1", "answer": "5", "steps": []} for i in range(50)]
    data, told = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told.write_text(
        "".join(json.dumps({"id": r["id"], "prediction": "#### 5"}) + "\n" for r in rows)
    )
    given = (told, None, data, None, None, {})
    result = score_file(*given)
    assert len(started) == symbolic.TIME_OUTS and result["correct"]["math_verify"] == 0
    assert result["correct"]["numeric"] == 50
    assert "20 answers took too long" in result["note"] and "30 more were not" in result["note"]
    assert result["note"] in table(result, "t").caption
    assert score_file(*given)["note"] == result["note"]  # each is counted for itself


def test_what_is_cut_off_is_no_number():
    """A number that the cut would halve is not read as another."""
    half = "1" * symbolic.MAX_CHARS
    assert not math_verify(f"The answer is: {half}2345", half)
    assert not math_verify(f"9999{half}", half)
    assert math_verify(f"{'a b ' * 1000} 7", "7")
    assert math_verify(f"The answer is: 7 {'a b ' * 1000}", "7")


def test_a_process_that_something_else_ended_is_replaced():
    assert math_verify("#### 5", "5")
    os.kill(symbolic._worker.process.pid, signal.SIGKILL)
    assert math_verify("#### 5", "5")


def test_a_broken_installation_is_an_error_and_not_a_wrong_answer(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('half of it is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(symbolic, "_worker", None)
    with refused("evaluation.no-math-verify", "math-verify") as caught:
        math_verify("#### 5", "5")
    assert "(ImportError: half of it is missing)" in str(caught.value)


def table_rows():
    part = DOCS.read_text(encoding="utf-8").partition("## Examples")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_the_docs_is_what_the_rules_say():
    heading, _, *rows = table_rows()
    assert heading == ["text", "right answer", *(f"`{rule}`" for rule in RULES)]
    assert len({tuple(row) for row in rows}) == len(rows) == 39
    for written, gold, *cells in rows:
        text = written.strip("`").replace(" ↵ ", "\n")
        said = score(text, gold.strip("`"))
        assert cells == ["yes" if said[rule] else "no" for rule in RULES], written
    for column in zip(*rows, strict=True):  # no rule that is always right, none always wrong
        assert len(set(column)) > 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data (../shared/data) is not here")
def test_every_real_answer_is_a_number():
    files = SHARED.glob("*.jsonl")
    rows = [json.loads(line) for f in files for line in f.read_bytes().splitlines()]
    unread = [r["id"] for r in rows if not RULES["numeric"](f"#### {r['answer']}", r["answer"])]
    assert unread == [] and len(rows) > 20_000
    # Nothing of an answer is left unread: it equals what Python makes of the whole text.
    assert all(read_answer(r["answer"]).value == Fraction(r["answer"]) for r in rows)
    assert all(canonical_form(r["answer"]) == r["answer"] for r in rows)
