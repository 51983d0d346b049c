"""The made-up word problems: true, shuffled, disjoint between splits, the same every time."""

import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kava.data import synthetic
from kava.data.synthetic import DAYS, generate, vocabulary

SPLITS = ("train", "validation", "test")
TWO_NUMBERS = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


def chain_of(example):
    """(left, sign, right, result) of each step, read from the written steps."""
    found = [TWO_NUMBERS.search(step).groups() for step in example.steps]
    return [(int(a), sign, int(b), int(c)) for a, sign, b, c in found]


def facts_of(example):
    """The sentences of a question before the one that asks."""
    return example.question.split(". ")[:-1]


def solve(question):
    """Every day's count, worked out from the words alone in whatever order they come."""
    facts = [fact.split() for fact in question.split(". ")[:-1]]
    counts = {}
    while len(counts) < len(facts):
        for words in facts:
            text = " ".join(words)
            days = [word for word in words if word in DAYS]
            number = next((int(word) for word in words if word.isdigit()), None)
            if len(days) == 1:
                counts[days[0]] = number
            elif (known := counts.get(days[1])) is not None:
                counts[days[0]] = next(
                    count
                    for mark, count in {
                        " more ": known + (number or 0),
                        " fewer ": known - (number or 0),
                        " together": (number or 0) - known,
                        " twice ": 2 * known,
                    }.items()
                    if mark in text
                )
    return counts


@settings(max_examples=25, deadline=None)
@given(
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 1000),
    steps=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted),
    max_value=st.integers(6, 40),
    form=st.sampled_from(("equation", "natural", "sentences")),
)
def test_every_step_is_true_and_the_chain_ends_in_the_answer(split, seed, steps, max_value, form):
    examples = generate(
        split, 20, seed, form=form, min_steps=steps[0], max_steps=steps[1], max_value=max_value
    )
    for example in examples:
        assert steps[0] <= len(example.steps) <= steps[1]
        before = None
        for left, sign, right, result in chain_of(example):
            assert result == {"+": left + right, "-": left - right, "*": left * right}[sign]
            assert before is None or before in (left, right)
            assert all(1 <= number <= max_value for number in (left, right, result))
            before = result
        assert str(before) == example.answer


@pytest.mark.parametrize("distractors", [0, 1])
def test_the_words_alone_give_the_answer(distractors):
    for example in generate("test", 200, distractors=distractors):
        asked = example.question.split()[-3]
        assert len(facts_of(example)) == len(example.steps) + 1 + distractors
        assert solve(example.question)[asked] == int(example.answer)


def test_facts_are_never_told_in_the_order_needed():
    for example in generate("train", 500, min_steps=2):
        # Whom each fact is about; a fact that comes in time names only days known already.
        known, in_time = set(), []
        for fact in facts_of(example):
            about, *others = [word for word in fact.split() if word in DAYS]
            in_time.append(set(others) <= known)
            known.add(about)
        assert not all(in_time)


def test_the_same_arguments_give_the_same_problems_and_a_seed_others():
    assert generate("train", 50, 3) == generate("train", 50, 3)
    assert generate("train", 50, 3) != generate("train", 50, 4)
    assert generate("train", 10, 3) == generate("train", 50, 3)[:10]


def test_known_problem():
    """Pins the stream: a change here changes every published quickstart number."""
    example = generate("test", 3)[2]
    assert example.id == "synthetic-test-2"
    assert example.question == (
        "Wednesday brought 5 fewer than Tuesday. Thursday brought 3 more than "
        "Wednesday. Monday brought Dan 1 lamp. Tuesday brought 6 more than Monday. "
        "How many lamps did Thursday bring Dan?"
    )
    assert example.steps == ("<<1+6=7>>", "<<7-5=2>>", "<<2+3=5>>")
    assert example.answer == "5"


def test_splits_share_no_problem_whatever_the_seeds():
    examples = {split: generate(split, 3000, seed) for seed, split in enumerate(SPLITS)}
    questions = {split: {e.question for e in rows} for split, rows in examples.items()}
    # One-step problems are too few to part by their numbers: their wording parts them.
    chains = {
        split: {e.steps for e in rows if len(e.steps) > 1} for split, rows in examples.items()
    }
    for kind in (questions, chains):
        assert not kind["train"] & kind["validation"]
        assert not kind["train"] & kind["test"]
        assert not kind["validation"] & kind["test"]


def test_no_question_comes_twice():
    questions = [example.question for example in generate("train", 5000, max_steps=2)]
    assert len(set(questions)) == len(questions)


def test_the_number_of_steps_is_uniform():
    counts = Counter(len(example.steps) for example in generate("train", 500))
    assert counts == {steps: 100 for steps in range(1, 6)}


def test_answers_are_spread_evenly_and_the_last_operation_does_not_give_them_away():
    examples = generate("train", 9000)
    counts = Counter(example.answer for example in examples)
    assert set(counts) == set(map(str, range(1, 10)))
    assert all(800 < count < 1200 for count in counts.values())
    # Guessing from the last operation alone (its sign and its own number).
    guesses = defaultdict(Counter)
    for example in examples:
        if len(example.steps) > 1:
            left, sign, right, _ = chain_of(example)[-1]
            known = chain_of(example)[-2][-1]
            guesses[sign, left if right == known else right][example.answer] += 1
    right = sum(max(answers.values()) for answers in guesses.values())
    assert right / sum(sum(answers.values()) for answers in guesses.values()) < 0.33


def test_natural_form_says_the_same_in_sentences():
    written = generate("validation", 20, form="equation")
    said = generate("validation", 20, form="natural")
    for equation, sentence in zip(written, said, strict=True):
        assert equation.question == sentence.question
        for step, words in zip(equation.steps, sentence.steps, strict=True):
            assert step == f"<<{TWO_NUMBERS.search(words).group()}>>"
            assert re.fullmatch(r"[A-Z][a-z]+ [a-z]+ \S+=\d+ [a-z]+\.", words)


def test_sentences_add_words_to_the_same_problems():
    equations = generate("validation", 200, form="equation")
    sentences = generate("validation", 200, form="sentences")
    lengths = []
    for equation, sentence in zip(equations, sentences, strict=True):
        assert (equation.question, equation.answer) == (sentence.question, sentence.answer)
        for step, words in zip(equation.steps, sentence.steps, strict=True):
            assert [step] == [f"<<{match.group()}>>" for match in TWO_NUMBERS.finditer(words)]
            lengths.append(len(re.findall(r"\d+|[A-Za-z]+|[^\s\w]", words)))
    assert min(lengths) >= 12 and max(lengths) <= 30
    # The wording varies, so the opening words do too.
    assert len({step.split()[0] for example in sentences for step in example.steps}) > 10


def test_sentences_depend_on_their_own_question_alone():
    few = generate("test", 20, form="sentences")
    many = generate("test", 40, form="sentences")
    assert many[:20] == few


def test_the_vocabulary_covers_all_that_is_written():
    known = set(vocabulary(20))
    for form in ("equation", "natural"):
        for example in generate("train", 500, form=form, max_value=20, distractors=1):
            text = " ".join([example.question, *example.steps, example.answer])
            assert set(re.findall(r"<<|>>|\w+|[^\w\s]", text)) <= known
    assert len(known) == len(vocabulary(20))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "dev"}, "split"),
        ({"form": "prose"}, "form"),
        ({"count": -1}, "negative"),
        ({"min_steps": 0}, "min_steps"),
        ({"min_steps": 4, "max_steps": 3}, "min_steps"),
        ({"max_value": 3}, "max_value"),
        ({"max_steps": 7}, "exceed 6"),
    ],
)
def test_impossible_requests_are_refused_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        generate(**{"split": "train", "count": 5} | arguments)


def test_a_split_that_runs_dry_says_so(monkeypatch):
    monkeypatch.setattr(synthetic, "NAMES", ("Ann", "Bob"))
    monkeypatch.setattr(synthetic, "THINGS", ("pens",))
    with pytest.raises(ValueError, match="has only"):
        generate("test", 1000, max_steps=1)
