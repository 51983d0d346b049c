"""Iterating until nothing changes, each question on its own, and nothing settled again."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from test_latents import close
from tiny import batch, example, reasoner, recipe

from kava.backbones import cache
from kava.reasoning.latents import jacobi, sequential
from kava.reasoning.latents._settle import _count_settled
from kava.reasoning.methods import prefill_question, student_suffix
from kava.reasoning.states import AutoIterations

EXAMPLES = [example(4, 3), example(9, 5, 1), example(1, 0, 2), example(6, 2, 3)]
QUESTIONS = [one.question for one in EXAMPLES]
M = 5


def settled(thinker, examples, most, tolerance, limits=None):
    data = batch(thinker, examples)
    with torch.no_grad():
        question, _ = prefill_question(thinker, data)
        limits = limits if limits is not None else AutoIterations(most, tolerance)
        return jacobi.think(thinker, question, M, limits, student_suffix(thinker, data))


def same_end(one, other):
    return (
        close(one.latents, other.latents)
        and close(one.suffix, other.suffix)
        and all(
            close(a, b)
            for ours, theirs in zip(one.key_values[-1], other.key_values[-1], strict=True)
            for a, b in zip(ours, theirs, strict=True)
        )
    )


@pytest.mark.parametrize("family", ("llama", "gpt2", "gemma2"))
@pytest.mark.parametrize("iterations", (1, 3))
def test_cut_off_before_it_settles_it_is_plain_iteration(family, iterations):
    thinker = reasoner(family)
    ours = settled(thinker, EXAMPLES, iterations, 0.0)
    assert same_end(ours, settled(thinker, EXAMPLES, 0, 0, limits=iterations))
    assert ours.iterations.tolist() == [iterations] * len(EXAMPLES)


@pytest.mark.parametrize("family", ("llama", "gpt2", "gemma2"))
def test_where_nothing_changes_latents_are_those_made_one_at_a_time(family):
    thinker = reasoner(family)
    ours, data = settled(thinker, EXAMPLES, 50, 1e-4), batch(thinker, EXAMPLES)
    with torch.no_grad():
        question, _ = prefill_question(thinker, data)
        theirs = sequential.think(thinker, question, M, student_suffix(thinker, data))
    torch.testing.assert_close(ours.inputs[-1], theirs.inputs[-1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours.suffix, theirs.suffix, rtol=1e-2, atol=1e-2)
    assert max(ours.iterations.tolist()) <= M + 1


def test_each_question_stops_on_its_own():
    thinker = reasoner()
    together = settled(thinker, EXAMPLES, 50, 0.3)
    assert len(set(together.iterations.tolist())) > 1
    for i, one in enumerate(EXAMPLES):
        alone = settled(thinker, [one], 50, 0.3)
        assert alone.iterations[0] == together.iterations[i]
        assert close(alone.latents[0], together.latents[i])
        width = alone.suffix.shape[1]
        assert close(alone.suffix[0], together.suffix[i, :width])


def test_what_is_settled_is_not_computed_again(monkeypatch):
    thinker, widths = reasoner(), []
    honest = thinker.extend

    def spy(context, embeds, *given, **named):
        widths.append(embeds.shape[1])
        return honest(context, embeds, *given, **named)

    monkeypatch.setattr(thinker, "extend", spy)
    state = settled(thinker, EXAMPLES[:1], 50, 1e-5)
    _, first, *rest = widths  # the question, pass 0, and the passes after it
    assert first == M + 1 and rest[0] == M and rest == sorted(rest, reverse=True)
    assert len(rest) == state.iterations[0] and rest[-1] < M
    assert cache.length(state.cache.past_key_values) == state.cache.columns


@given(st.lists(st.booleans(), min_size=M, max_size=M))
def test_settled_are_the_latents_before_the_first_that_changes(changes):
    inputs = torch.ones(1, M, 3)
    update = inputs + 0.1 * torch.tensor(changes)[None, :, None]
    expected = changes.index(True) if True in changes else M
    assert _count_settled(inputs, update, 0.05).tolist() == [expected]
    assert _count_settled(inputs, update, 0.2).tolist() == [M]


@pytest.mark.parametrize("method", ("kava", "pccot", "lotus"))
def test_answers_may_iterate_as_long_as_they_need(method):
    thinker = reasoner("llama", method, max_iterations=4, tolerance=0.3)
    reasoning = thinker.think(QUESTIONS, "auto")
    assert reasoning.forward_passes == max(reasoning.iterations) <= 4
    answers = thinker.answer(reasoning, 3, num_beams=2, num_return_sequences=2)
    for i, answer in enumerate(answers):
        assert answer.forward_passes == reasoning.iterations[i // 2] + answer.generated_tokens
    texts = thinker.generate(QUESTIONS, 3, num_iterations="auto")
    assert texts == [thinker.generate(one, 3, num_iterations="auto") for one in QUESTIONS]


def test_a_method_without_iterations_has_none_to_find():
    with refused("reasoning.no-iterations", "codi"):
        reasoner("llama", "codi").think(QUESTIONS, "auto")
    with refused("reasoning.bad-number", "num_iterations"):
        reasoner().think(QUESTIONS, "automatic")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    reasoner(eval={"max_new_tokens": 3}, tolerance=0.3).save_pretrained(folder / "checkpoint")
    return folder


def test_the_commands_take_auto(run, tmp_path, kava):
    status, said = kava("ask", run, "w1 w2 w3", "--iterations", "auto", "--max-new-tokens", 2)
    assert status == 0 and "forward passes" in said
    task = ("--task", "synthetic", "--limit", 3, "--iterations")
    status, said = kava("eval", run, *task, "auto", "-o", tmp_path / "auto")
    score = json.loads((tmp_path / "auto" / "result.json").read_text())["scores"]["synthetic"]
    assert status == 0 and score["num_iterations"] == "auto"
    status, said = kava("eval", run, *task, 1, "-o", tmp_path / "one")
    score = json.loads((tmp_path / "one" / "result.json").read_text())["scores"]["synthetic"]
    assert score["num_iterations"] == 1
    status, said = kava("eval", run, *task, "auto")
    assert (status, said.code, said.key) == (2, "evaluation.other-iterations", "--iterations")
    assert not (run / "result.json").exists()
    status, said = kava("ask", run, "w1", "--iterations", "-1")
    assert (status, said.code, said.key) == (2, "cli.bad-iterations", "--iterations")


# -- a random number of iterations in training ---------------------------------------------------


def test_a_training_draws_iterations_for_each_step():
    thinker = reasoner(random_iterations=[1, 4])
    parts = [batch(thinker, EXAMPLES[:2]), batch(thinker, EXAMPLES[2:])]

    def drawn(epoch):
        return [thinker.apply_stage(part, epoch, i)["iterations"] for i, part in enumerate(parts)]

    every = [drawn(step / 50) for step in range(50)]
    assert all(one == other for one, other in every)  # the parts of a step have the same
    assert {one for one, _ in every} == {1, 2, 3, 4} and every == [drawn(n / 50) for n in range(50)]
    assert "iterations" not in thinker.apply_stage(parts[0])  # as in an answer
    data = thinker.apply_stage(parts[0], 0.0)
    plain = reasoner(num_iterations=data["iterations"])
    with torch.no_grad():
        ours = thinker(counts=thinker.method.counts(data), **data)
        assert ours == plain(**parts[0])


@pytest.mark.parametrize(
    "method,changes,code,key",
    (
        ("codi", {"random_iterations": [1, 2]}, "reasoning.no-such-update", "random_iterations"),
        ("lotus", {"latent_update": "residual"}, "reasoning.no-such-update", "latent_update"),
        (
            "kava",
            {"random_iterations": [1, 2], "kv": {"weight": 1, "supervise": "all"}},
            "reasoning.uneven-passes",
            "kv.supervise",
        ),
    ),
)
def test_what_a_method_cannot_iterate_is_refused(method, changes, code, key):
    with refused(code, key):
        recipe(method, **changes)
