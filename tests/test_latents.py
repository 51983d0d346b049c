"""Jacobi iteration reaches one-at-a-time latents, one more with each pass (PCCoT's law)."""

import pytest
import torch
from reference import jacobi_inputs, looped_inputs, sequential_inputs, token_embeds
from tiny import batch, example, reasoner

from kava.backbones import cache
from kava.reasoning.latents import jacobi, looped, sequential
from kava.reasoning.methods import prefill_question, student_suffix

M = 5
EXAMPLES = [example(4, 3), example(9, 5, 1, "1 2"), example(1, 0, 2)]


@pytest.fixture
def thinker(family):
    return reasoner(family)


@pytest.fixture
def start(thinker):
    data = batch(thinker, EXAMPLES)
    with torch.no_grad():
        return prefill_question(thinker, data)[0], student_suffix(thinker, data)


def iterate(thinker, start, passes, **options):
    with torch.no_grad():
        return jacobi.think(thinker, start[0], M, passes, start[1], **options)


def sequential_passes(thinker, start):
    with torch.no_grad():
        return sequential.think(thinker, start[0], M, start[1])


def close(a, b):
    return torch.allclose(a, b, atol=1e-4)


def same_columns(first, second, count):
    return all(
        close(a[:, :, :count], b[:, :, :count])
        for pairs in zip(first, second, strict=True)
        for a, b in zip(*pairs, strict=True)
    )


@pytest.mark.parametrize("passes", range(1, M + 3))
def test_after_t_iterations_the_first_t_latents_are_the_sequential_ones(thinker, start, passes):
    ours, theirs = iterate(thinker, start, passes), sequential_passes(thinker, start)
    assert close(ours.inputs[-1][:, :passes], theirs.inputs[-1][:, :passes])
    assert same_columns(ours.key_values[-1], theirs.key_values[-1], passes)


@pytest.mark.parametrize("passes", (1, 2))
def test_before_that_the_next_latent_still_differs(thinker, start, passes):
    ours, theirs = iterate(thinker, start, passes), sequential_passes(thinker, start)
    gap = (ours.inputs[-1][:, passes] - theirs.inputs[-1][:, passes]).abs()
    assert gap.max() > 1e-2


def test_as_many_iterations_as_latents_give_the_same_answer_states(thinker, start):
    mask = start[1].mask
    ours, theirs = iterate(thinker, start, M), sequential_passes(thinker, start)
    assert close(ours.suffix[mask], theirs.suffix[mask])


def test_no_iteration_leaves_pause_tokens(thinker, start):
    state = iterate(thinker, start, 0)
    pause = thinker.special_tokens["latent"].expand(len(EXAMPLES), M, -1)
    assert len(state.inputs) == 1 and torch.equal(state.inputs[0], pause)


@pytest.mark.parametrize("passes", (0, 1, 3))
def test_every_pass_has_the_inputs_of_plain_calls_without_cache(thinker, start, passes):
    state = iterate(thinker, start, passes)
    assert len(state.inputs) == passes + 1
    for i, one in enumerate(EXAMPLES):
        question = token_embeds(thinker, thinker.encoder.question(one.question))
        with torch.no_grad():
            slow = jacobi_inputs(thinker, question, M, passes)
        for ours, theirs in zip(state.inputs, slow, strict=True):
            assert close(ours[i], theirs)


def test_keep_all_keeps_each_pass_and_only_adds_to_the_last(thinker, start):
    kept = iterate(thinker, start, 3, keep_all=True).key_values
    assert len(kept) == 4
    for t, pairs in enumerate(kept):
        alone = iterate(thinker, start, t).key_values
        assert len(alone) == 1
        assert same_columns(pairs, alone[0], M)


def test_the_states_of_each_pass_are_those_of_a_shorter_thought(thinker, start):
    kept = iterate(thinker, start, 3, keep_all=True)
    assert len(kept.states) == 4 and kept.latents is kept.states[-1]
    for t, states in enumerate(kept.states):
        alone = iterate(thinker, start, t)
        assert len(alone.states) == 1
        assert close(states, alone.latents)


@pytest.mark.parametrize("passes", (0, 1, 2))
def test_thinking_leaves_the_question_as_it_was(thinker, start, passes):
    question = start[0]
    before = [t.clone() for pair in cache.key_values(question.past_key_values) for t in pair]
    state = iterate(thinker, start, passes)
    after = [t for pair in cache.key_values(question.past_key_values) for t in pair]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert state.cache.columns == question.columns + 1 + M + start[1].mask.shape[1]
    assert cache.length(state.cache.past_key_values) == state.cache.columns


def test_gradients_reach_the_first_pass(thinker, start):
    suffix = student_suffix(thinker, batch(thinker, EXAMPLES))
    jacobi.think(thinker, start[0], M, 2, suffix).suffix.square().sum().backward()
    for name in ("bot", "latent", "eot"):
        assert thinker.special_tokens[name].grad.abs().max() > 0


@pytest.mark.parametrize("loops", (0, 1, 3))
def test_every_loop_has_the_inputs_of_plain_calls_without_cache(thinker, start, loops):
    with torch.no_grad():
        state = looped.think(thinker, start[0], M, loops, start[1], keep_all=True)
    assert len(state.inputs) == len(state.key_values) == loops + 1
    for i, one in enumerate(EXAMPLES):
        question = token_embeds(thinker, thinker.encoder.question(one.question))
        with torch.no_grad():
            slow = looped_inputs(thinker, question, M, loops)
        for ours, theirs in zip(state.inputs, slow, strict=True):
            assert close(ours[i], theirs)


def test_one_at_a_time_equals_plain_calls_without_cache(thinker, start):
    state = sequential_passes(thinker, start)
    for i, one in enumerate(EXAMPLES):
        question = token_embeds(thinker, thinker.encoder.question(one.question))
        with torch.no_grad():
            assert close(state.inputs[0][i], sequential_inputs(thinker, question, M))


def test_rows_may_have_different_numbers_of_latents(thinker, start):
    lengths = torch.tensor([3, 0, 5])
    with torch.no_grad():
        mixed = sequential.think(thinker, start[0], M, start[1], lengths)
    for i, one in enumerate(EXAMPLES):
        data = batch(thinker, [one])
        with torch.no_grad():
            question, suffix = prefill_question(thinker, data)[0], student_suffix(thinker, data)
            alone = sequential.think(thinker, question, int(lengths[i]), suffix)
        width = suffix.mask.shape[1]
        assert close(mixed.suffix[i, :width], alone.suffix[0])
        assert mixed.cache.next_position[i] == alone.cache.next_position[0]


@pytest.mark.parametrize("rule", ("jacobi", "looped", "sequential"))
def test_the_states_of_the_latents_are_those_that_the_head_would_read(thinker, start, rule):
    with torch.no_grad():
        state = {
            "jacobi": lambda: jacobi.think(thinker, start[0], M, 2, start[1]),
            "looped": lambda: looped.think(thinker, start[0], M, 2, start[1]),
            "sequential": lambda: sequential.think(thinker, start[0], M, start[1]),
        }[rule]()
        again, _ = thinker.extend(state.cache.crop(start[0].columns + 1), state.inputs[-1])
    assert close(state.latents, again.last_hidden_state)
