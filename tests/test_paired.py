"""Intervals and tests of paired accuracies, against counting out and plain Python."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from kava.evaluation import paired

HITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def sides(pairs):
    return [a for a, _ in pairs], [b for _, b in pairs]


def with_disagreements(only_a, only_b, both=3, neither=2):
    return sides(
        [(True, False)] * only_a
        + [(False, True)] * only_b
        + [(True, True)] * both
        + [(False, False)] * neither
    )


@pytest.mark.parametrize("n", range(9))
def test_mcnemar_counts_the_coin_throws_that_are_as_uneven(n):
    throws = [sum(throw) for throw in itertools.product((0, 1), repeat=n)]
    for heads in range(n + 1):
        uneven = sum(abs(2 * t - n) >= abs(2 * heads - n) for t in throws)
        p = paired.mcnemar(*with_disagreements(heads, n - heads))
        assert p == pytest.approx(float(Fraction(uneven, len(throws))), abs=1e-15)


def test_mcnemar_looks_at_disagreements_alone():
    few = paired.mcnemar(*with_disagreements(7, 2, both=0, neither=0))
    assert few == paired.mcnemar(*with_disagreements(7, 2, both=900, neither=500))
    assert paired.mcnemar(*with_disagreements(3000, 0)) == pytest.approx(0.0, abs=1e-300)


def slow_bootstrap(a, b, seed, resamples):
    """Draw questions with replacement, and leave out 2.5 % of the differences at either end."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for drawn in torch.randint(len(a), (resamples, len(a)), generator=generator).tolist():
        found.append(100 * (sum(a[i] for i in drawn) - sum(b[i] for i in drawn)) / len(a))
    found.sort()
    outside = resamples // 40
    return found[outside], found[len(found) - 1 - outside]


@settings(max_examples=30)
@given(HITS, st.integers(0, 99))
def test_the_interval_is_that_of_a_plain_bootstrap_with_the_same_draws(pairs, seed):
    a, b = sides(pairs)
    expected = slow_bootstrap(a, b, seed, 200)
    assert paired.paired_bootstrap(a, b, seed, 200) == pytest.approx(expected)


def test_the_interval_has_the_width_that_theory_gives_it():
    a, b = with_disagreements(90, 50, both=200, neither=60)
    low, high = paired.paired_bootstrap(a, b, seed=3)
    gap, error = 40 / 400, math.sqrt((140 / 400 - (40 / 400) ** 2) / 400)
    assert paired.difference(a, b) == 100 * gap
    assert low == pytest.approx(100 * (gap - 1.96 * error), abs=0.5)
    assert high == pytest.approx(100 * (gap + 1.96 * error), abs=0.5)


def test_how_much_is_drawn_at_once_changes_nothing(monkeypatch):
    a, b = with_disagreements(9, 4)
    whole = paired.paired_bootstrap(a, b, 5, 1000)
    monkeypatch.setattr(paired, "_AT_ONCE", 77)
    assert paired.paired_bootstrap(a, b, 5, 1000) == whole


@settings(max_examples=30)
@given(HITS)
def test_laws(pairs):
    a, b = sides(pairs)
    low, high = paired.paired_bootstrap(a, b, 1, 400)
    assert low <= high
    assert (low, high) == paired.paired_bootstrap(a, b, 1, 400)
    assert paired.paired_bootstrap(b, a, 1, 400) == (-high, -low)
    assert paired.difference(b, a) == -paired.difference(a, b)
    assert paired.mcnemar(a, b) == paired.mcnemar(b, a) <= 1
    assert paired.paired_bootstrap(a, a, 1, 400) == (0, 0) and paired.mcnemar(a, a) == 1


@pytest.mark.parametrize("hits, n", [(0, 1), (0, 40), (7, 40), (20, 40), (1319, 1319)])
def test_wilson_holds_the_shares_from_which_the_accuracy_is_not_far(hits, n):
    low, high = (end / 100 for end in paired.wilson(hits, n))
    seen = hits / n
    for share in (low, high):
        if 0 < share < 1:
            away = abs(seen - share) / math.sqrt(share * (1 - share) / n)
            assert away == pytest.approx(1.959964, rel=1e-4)
    assert low <= seen <= high and high - low > 0
    mirrored = paired.wilson(n - hits, n)
    assert (100 * (1 - high), 100 * (1 - low)) == pytest.approx(mirrored, abs=1e-9)


@pytest.mark.parametrize("compare", [paired.mcnemar, paired.difference,
                                     lambda a, b: paired.paired_bootstrap(a, b, 0)])  # fmt: skip
@pytest.mark.parametrize("a, b", [([True], []), ([], []), ([True, False], [True])])
def test_answers_to_other_questions_are_refused(compare, a, b):
    with refused("evaluation.not-paired") as told:
        compare(a, b)
    assert f" {len(a)} and {len(b)} " in str(told.value)


def test_no_questions_have_no_interval():
    with refused("evaluation.no-questions", "n"):
        paired.wilson(0, 0)


@pytest.mark.parametrize(("seed", "beyond"), [(-(2**63), -(2**63) - 1), (2**64 - 1, 2**64)])
def test_every_seed_that_torch_takes_is_taken_and_no_other(seed, beyond):
    assert paired.paired_bootstrap([True, False], [False, False], seed, resamples=40)
    with refused("evaluation.bad-seed", "seed") as told:
        paired.paired_bootstrap([True], [False], beyond)
    assert f"seed {beyond} " in str(told.value)
