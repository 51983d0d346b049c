"""The order of an epoch's rows, and rows of like length in one batch."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import example, reasoner

from kava.training.sampler import POOL, EpochOrder

SIZES = st.integers(1, 700)


@given(rows=SIZES, batch=st.integers(1, 9), together=st.integers(1, 9), epoch=st.integers(0, 3))
def test_every_row_once_an_epoch_grouped_or_not(rows, batch, together, epoch):
    lengths = [random.Random(i).randrange(50) for i in range(rows)]
    for given_lengths in (None, lengths):
        order = EpochOrder(rows, 5, together, given_lengths, batch)
        order.set_epoch(epoch)
        numbers = list(order)
        assert len(numbers) == len(order) and len(order) % together == 0
        assert Counter(numbers) == Counter(range(len(order)))
        assert numbers[rows:] == list(range(rows, len(order)))


def in_batches(numbers, batch):
    return [numbers[i : i + batch] for i in range(0, len(numbers), batch)]


def test_batches_hold_rows_of_like_length_and_come_in_any_order():
    rows, batch = 2 * POOL * 8 + 5, 8
    lengths = [random.Random(i).randrange(10, 200) for i in range(rows)]
    plain, grouped = (in_batches(list(EpochOrder(rows, 1, 1, of, batch)), batch)
                      for of in (None, lengths))  # fmt: skip

    def pads(batches):
        longest = [max(lengths[i] for i in part) for part in batches]
        return sum(top * len(part) - sum(lengths[i] for i in part)
                   for top, part in zip(longest, batches, strict=True))  # fmt: skip

    assert pads(grouped) < 0.1 * pads(plain)
    assert len(grouped[-1]) == 5  # what is left over is the epoch's end
    tops = [max(lengths[i] for i in part) for part in grouped[:POOL]]
    assert tops not in (sorted(tops), sorted(tops, reverse=True))
    # A pool holds the rows that the draw gave it.
    first = {i for part in plain[:POOL] for i in part}
    assert {i for part in grouped[:POOL] for i in part} == first


@pytest.mark.parametrize("batch", (4, 8))
def test_another_epoch_and_another_seed_meet_other_rows(batch):
    lengths = [i % 7 for i in range(200)]

    def sets(seed, epoch):
        order = EpochOrder(200, seed, 1, lengths, batch)
        order.set_epoch(epoch)
        return {frozenset(part) for part in in_batches(list(order), batch)}

    assert sets(1, 0) == sets(1, 0)
    assert sets(1, 0) != sets(1, 1) and sets(1, 0) != sets(2, 0)


@pytest.mark.parametrize("processes", (1, 2))
def test_processes_share_the_same_batches(processes):
    lengths = [i % 11 for i in range(90)]
    one = in_batches(list(EpochOrder(90, 1, 4, lengths, 8)), 8)
    several = in_batches(list(EpochOrder(90, 1, 4 * processes, lengths, 8)), 8)
    assert [set(part) for part in one[:11]] == [set(part) for part in several[:11]]


def test_a_training_groups_rows_where_its_recipe_says_so():
    pads = {}
    for grouped in (False, True):
        train = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-4, "group_by_length": grouped}
        model = reasoner("llama", "cot", train=train)
        rows = [example(1 + i * 7 % 29, 2, seed=i) for i in range(40)]
        seen, forward = [], model.forward

        def watched(*args, seen=seen, forward=forward, **batch):
            seen.append(int((~batch["question_mask"]).sum()))
            return forward(*args, **batch)

        model.forward = watched
        model.train_on(rows, quiet=True)
        assert len(seen) == 10
        pads[grouped] = sum(seen)
    assert pads[True] < 0.3 * pads[False]
