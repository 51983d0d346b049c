"""Answering from the cache equals computing the whole sequence again for every token."""

import copy

import pytest
import torch
from reference import generate, needs_oracle, prefix, to_textbook
from refusals import refused
from tiny import FAMILIES, reasoner

from kava.backbones import cache
from kava.recipe import registry

QUESTIONS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w12"]
COUNT = 7


@pytest.fixture
def thinker(pair):
    return reasoner(*pair)


@torch.no_grad()
def slow_answers(thinker, count=COUNT):
    needs_oracle(thinker.recipe.method)
    slow = to_textbook(copy.deepcopy(thinker))
    prompt, eos = thinker.encoder.prompt, thinker.tokenizer.eos_token_id
    questions = [thinker.encoder.question(q) for q in QUESTIONS]
    return [generate(slow, prefix(slow, q, prompt), count, eos) for q in questions]


def fast_answers(thinker, reasoning, count=COUNT):
    ids = thinker.continue_from(reasoning, count)
    lengths = thinker.generated_lengths(ids).tolist()
    assert all(
        (row[n:] == thinker.tokenizer.pad_token_id).all()
        for row, n in zip(ids, lengths, strict=True)
    )
    firsts = reasoning.prompt.tolist() if reasoning.prompt_text is None else [[]] * len(ids)
    rows = zip(firsts, ids.tolist(), lengths, strict=True)
    return [[*first, *row[:n]] for first, row, n in rows]


def test_with_cache_as_without(thinker):
    assert fast_answers(thinker, thinker.think(QUESTIONS)) == slow_answers(thinker)


def test_rows_end_at_eos_on_their_own(thinker):
    before = slow_answers(thinker)
    later = [(i, t) for i, ids in enumerate(before) for t in ids[1:] if t != ids[0]]
    row, eos = (later or [(0, before[0][1])])[0]
    thinker.tokenizer.eos_token = thinker.tokenizer.convert_ids_to_tokens(eos)
    expected = slow_answers(thinker)
    if later or thinker.recipe.method != "lotus":  # whose first token is never EOS
        assert expected[row] == before[row][: before[row].index(eos) + 1]
    assert fast_answers(thinker, thinker.think(QUESTIONS)) == expected


def test_a_thought_can_be_answered_twice(thinker):
    reasoning = thinker.think(QUESTIONS)
    columns = reasoning.cache.columns
    first = fast_answers(thinker, reasoning)
    assert cache.length(reasoning.cache.past_key_values) == columns
    assert fast_answers(thinker, reasoning) == first


@pytest.mark.parametrize(
    "family, iterations", [("gpt2", 0), ("llama", 4), *((family, 1) for family in FAMILIES)]
)
def test_the_number_of_iterations_can_be_chosen_when_asked(family, iterations):
    trained = reasoner(family, "kava", num_iterations=2)
    other = reasoner(family, "kava", num_iterations=iterations)
    reasoning = trained.think(QUESTIONS, num_iterations=iterations)
    assert fast_answers(trained, reasoning) == slow_answers(other)
    assert reasoning.forward_passes == iterations


PASSES = {
    "cot": 0,
    "no_cot": 0,
    "icot": 0,
    "coconut": 4,
    "codi": 5,
    "pccot": 2,
    "kava": 2,
    "lotus": 2,
}


def test_iterations_cannot_be_chosen_for_a_method_that_has_none():
    with refused("reasoning.no-iterations", "codi"):
        reasoner("llama", "codi").think(QUESTIONS, num_iterations=2)


@pytest.mark.parametrize("method", registry.names("methods"))
def test_forward_passes_count_the_calls_between_prefill_and_answer(method):
    thinker, calls = reasoner("llama", method), []
    thinker.lm.base_model.register_forward_hook(lambda *_: calls.append(1))
    reasoning = thinker.think(QUESTIONS)
    assert reasoning.forward_passes == PASSES.get(method, reasoning.forward_passes)
    assert len(calls) == reasoning.prefill_passes + reasoning.forward_passes


def test_questions_that_spell_out_special_tokens_are_only_words():
    thinker = reasoner()
    ids = thinker.encoder.question("w1 <bot> w2 </s><latent> <pad> <eot> <s> w3")
    assert ids[0] == thinker.tokenizer.bos_token_id
    assert not set(ids[1:]) & set(thinker.tokenizer.all_special_ids) - {3}  # 3 is "<unk>"
    assert max(ids) < thinker.lm.config.vocab_size
    assert thinker.tokenizer.decode(ids[-1]) == "w3"
    thinker.continue_from(thinker.think(["w1 <bot> w2 </s><latent>"]), 2)
