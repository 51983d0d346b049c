"""The Python interface: questions in, texts out, and what transformers' `generate` can do."""

import copy

import pytest
import torch
from refusals import refused
from tiny import lora, reasoner
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.reasoner import Reasoner

QUESTIONS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11"]


@pytest.fixture
def thinker(pair):
    return reasoner(*pair)


@pytest.fixture
def kava():
    return reasoner("llama", "kava")


def test_one_question_or_several(thinker):
    several = thinker.generate(QUESTIONS, max_new_tokens=5)
    assert several == [thinker.generate(question, max_new_tokens=5) for question in QUESTIONS]
    assert several == [one.text for one in thinker.answer(thinker.think(QUESTIONS), 5)]
    assert all(isinstance(text, str) for text in several)


def test_thoughts_come_along_where_asked(kava):
    text, reasoning = kava.generate(QUESTIONS, 5, num_iterations=1, return_reasoning=True)
    assert isinstance(reasoning.cache, MaskedCache) and reasoning.latent_states.shape[:2] == (3, 5)
    assert reasoning.forward_passes == 1
    assert text == [one.text for one in kava.answer(reasoning, 5)]
    single, reasoning = kava.generate(QUESTIONS[0], 5, return_reasoning=True)
    assert isinstance(single, str) and reasoning.cache.attention_mask.shape[0] == 1


@pytest.mark.parametrize(
    ("questions", "code", "key", "value"),
    [
        ([], "reasoning.no-question", None, ""),
        ("", "reasoning.empty-question", "the question", "not ''"),
        (["w1", " "], "reasoning.empty-question", "question 2", "not ' '"),
        ([1], "reasoning.empty-question", "question 1", "not 1"),
    ],
)
def test_what_is_no_question(kava, questions, code, key, value):
    with refused(code, key) as caught:
        kava.generate(questions)
    assert value in str(caught.value)


def test_iterations_only_where_there_are_any(kava):
    with refused("reasoning.no-iterations", "codi"):
        reasoner("llama", "codi").generate("w1", num_iterations=2)
    assert kava.think("w1", 0).forward_passes == 0


# -- embeddings of a thought ---------------------------------------------------------------------


@torch.no_grad()
def test_the_backbone_reads_the_same_thought_from_embeddings(thinker):
    """No cache, no mask, no positions given: the plain forward pass of the backbone."""
    for question in QUESTIONS:
        reasoning = thinker.think(question)
        mask = torch.ones_like(reasoning.prompt, dtype=torch.bool)
        output, _ = thinker.extend(reasoning.cache, thinker.embed(reasoning.prompt), mask)
        expected = thinker.logits(output.last_hidden_state[:, -1])
        found = thinker.lm(inputs_embeds=thinker.prompt_embeds(question)).logits[:, -1]
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_an_engine_that_takes_embeddings_answers_alike(kava):
    for t in (0, 2, 5):
        ids = kava.continue_from(kava.think(QUESTIONS[0], t), 8)
        embeds = kava.prompt_embeds(QUESTIONS[0], t)
        again = kava.lm.generate(
            inputs_embeds=embeds, max_new_tokens=8, do_sample=False,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            eos_token_id=kava.tokenizer.eos_token_id, pad_token_id=kava.tokenizer.pad_token_id,
        )  # fmt: skip
        assert again.tolist() == ids.tolist()


# -- what transformers' generate can do ----------------------------------------------------------


def ids_of(thinker, **options):
    return thinker.continue_from(thinker.think(QUESTIONS[:1]), 8, **options)


def test_sampling(kava):
    def draw(seed, **more):
        torch.manual_seed(seed)
        return kava.generate(QUESTIONS[0], 8, do_sample=True, **more)

    assert draw(1) == draw(1) and len({draw(seed) for seed in range(8)}) > 4
    greedy = kava.generate(QUESTIONS[0], 8)
    assert {draw(seed, top_k=1) for seed in range(4)} == {greedy}
    assert {draw(seed, temperature=1e-4) for seed in range(4)} == {greedy}
    assert {draw(seed, top_p=1e-6) for seed in range(4)} == {greedy}


def test_beams_and_several_answers(kava):
    """More beams never find a less likely answer than greedy decoding of the same length."""

    def log_probability(ids):
        embeds = torch.cat((kava.prompt_embeds(QUESTIONS[0]), kava.embed(ids)), 1)
        with torch.no_grad():
            scores = kava.lm(inputs_embeds=embeds).logits.log_softmax(-1)
        at = scores[0, -ids.shape[1] - 1 : -1]
        return float(at.gather(1, ids[0][:, None]).sum())

    never = {"suppress_tokens": [kava.tokenizer.eos_token_id]}
    greedy, beams = ids_of(kava, **never), ids_of(kava, num_beams=6, **never)
    assert log_probability(beams) >= log_probability(greedy) - 1e-4
    several = ids_of(kava, num_beams=4, num_return_sequences=3, **never)
    assert several.shape[0] == 3 and len({tuple(row) for row in several.tolist()}) == 3
    torch.manual_seed(0)
    sampled = ids_of(kava, do_sample=True, num_return_sequences=4)
    assert sampled.shape[0] == 4 and len({tuple(row) for row in sampled.tolist()}) > 1


def test_stopping_criteria(kava):
    prompt = len(kava.encoder.prompt)
    stop = StoppingCriteriaList([MaxLengthCriteria(prompt + 3)])
    assert ids_of(kava, stopping_criteria=stop).tolist() == ids_of(kava)[:, :3].tolist()


def test_logits_processors(kava):
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.masked_fill(torch.arange(scores.shape[1]) != 9, -torch.inf)

    assert ids_of(kava, logits_processor=LogitsProcessorList([Only()])).tolist() == [[9] * 8]


def test_tokens_that_are_never_to_come_stay_away_with_the_unreadable_ones(kava, monkeypatch):
    first = int(ids_of(kava)[0, 0])
    second = int(ids_of(kava, suppress_tokens=[first])[0, 0])
    monkeypatch.setitem(
        kava._buffers, "unreadable_ids", torch.arange(kava.lm.config.vocab_size) == second
    )
    kept = ids_of(kava, suppress_tokens=[first]).flatten().tolist()
    assert first not in kept and second not in kept


def test_streamers(kava, capsys):
    text = kava.generate(QUESTIONS[0], 8)
    kava.generate(QUESTIONS[0], 8, streamer=TextStreamer(kava.tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out.split() == text.replace(":", " : ").split()
    pieces = TextIteratorStreamer(kava.tokenizer, skip_prompt=True, skip_special_tokens=True)
    kava.generate(QUESTIONS[0], 8, streamer=pieces)
    assert text.endswith("".join(pieces).strip())


# -- a merged adapter ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_merged_adapter_answers_alike_and_is_saved_whole(family, tmp_path):
    thinker = reasoner(family, "kava", **lora())
    for name, weight in thinker.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.3)
    plain = copy.deepcopy(thinker)
    expected = thinker.think(QUESTIONS).latent_states
    texts = thinker.generate(QUESTIONS, 6)
    assert thinker.merge() is thinker and thinker.recipe.adapter == "full"
    torch.testing.assert_close(
        thinker.think(QUESTIONS).latent_states, expected, atol=1e-4, rtol=1e-4
    )
    assert not any("lora" in name for name, _ in thinker.named_parameters())
    with plain.backbone.disable_adapter():
        without = plain.think(QUESTIONS).latent_states
    assert (without - expected).abs().max() > 1e-2
    thinker.save_pretrained(tmp_path / "merged")
    again = Reasoner.from_pretrained(tmp_path / "merged")
    assert again.generate(QUESTIONS, 6) == texts
    again.save_pretrained(tmp_path / "again")
    for folder in ("merged", "again"):
        card = (tmp_path / folder / "README.md").read_text()
        adapter = next(line for line in card.splitlines() if line.startswith("| adapter"))
        assert "LoRA r 4" in adapter and "merged into the backbone" in adapter


def test_merging_without_an_adapter_changes_nothing(kava):
    before = {name: weight.clone() for name, weight in kava.named_parameters()}
    kava.merge()
    assert all(torch.equal(before[name], weight) for name, weight in kava.named_parameters())
