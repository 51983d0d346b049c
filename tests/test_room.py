"""What does not fit the backbone's positions is refused; an answer ends where they do."""

import io
import json
import sys
import types

import pytest
import torch
from refusals import refused
from tiny import bare, lora, reasoner, words, wrap

from kava.evaluation.runner import evaluate
from kava.reasoning import context_window
from kava.types import Example

MOST = 48
QUESTIONS = [words(n, seed=n) for n in (3, 26, 14)]


def two(family, method):
    """The same weights with 48 positions and with 256."""
    wide = bare(family)
    weights = wide.state_dict()
    if family == "gpt2":
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:MOST].clone()
    narrow = bare(family, max_position_embeddings=MOST)
    narrow.load_state_dict(weights)
    return wrap(narrow, method), wrap(wide, method)


def never(thinker):
    return {"suppress_tokens": [thinker.tokenizer.eos_token_id]}


def columns(thinker, question):
    """Tokens before the first new one, by running it."""
    reasoning = thinker.think(question)
    return int(reasoning.cache.attention_mask.sum()) + reasoning.prompt.shape[1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("method", ["kava", "cot"])
def test_each_row_of_a_batch_ends_where_its_own_positions_do(family, method):
    narrow, wide = two(family, method)
    answers = narrow.answer(narrow.think(QUESTIONS), **never(narrow))
    for question, found in zip(QUESTIONS, answers, strict=True):
        left = MOST - columns(wide, question)
        (wanted,) = wide.answer(wide.think(question), left, **never(wide))
        assert found == wanted and not found.finished and found.generated_tokens == left
    assert narrow.generate(QUESTIONS) == [narrow.generate(q) for q in QUESTIONS]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_beams_too(family):
    narrow, _ = two(family, "kava")
    options = {"num_beams": 3, "num_return_sequences": 2, **never(narrow)}
    together = narrow.answer(narrow.think(QUESTIONS), **options)
    alone = [one for q in QUESTIONS for one in narrow.answer(narrow.think(q), **options)]
    assert together == alone
    left = [MOST - columns(narrow, q) for q in QUESTIONS for _ in range(2)]
    assert [one.generated_tokens for one in together] == left
    assert not any(one.finished for one in together)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["kava", "codi", "no_cot", "cot"])
def test_the_longest_question_is_answered_and_one_token_more_refused(family, method):
    narrow, _ = two(family, method)
    most = MOST - context_window.reserved_tokens(narrow) - 2  # BOS, and the answer's one token
    fits, more = words(most, seed=1), words(most + 1, seed=1)
    assert len(narrow.generate(fits, 1)) > 0
    if method != "cot":  # it need not write the prompt that room is kept for
        assert columns(narrow, fits) == MOST - 1
    for ask in (narrow.generate, narrow.think, narrow.prompt_embeds):
        with refused("reasoning.question-too-long", "the question") as caught:
            ask(more)
        assert f"has {most + 2} tokens" in str(caught.value)
        assert f"{MOST} positions" in str(caught.value)
    with refused("reasoning.question-too-long", "question 2"):
        narrow.generate([fits, more])


def test_a_backbone_that_states_no_positions_takes_any_question(monkeypatch):
    thinker = reasoner("llama", "kava")
    config = types.SimpleNamespace()  # as of Bloom, which has none
    monkeypatch.setattr(thinker.lm.config, "get_text_config", lambda **_: config)
    assert context_window.max_positions(thinker) is None
    monkeypatch.undo()
    monkeypatch.setattr(context_window, "max_positions", lambda _: None)
    assert thinker.answer(thinker.think(words(300, seed=1)), 3)[0].generated_tokens <= 3


def test_tokens_that_must_come_have_to_fit():
    narrow, _ = two("llama", "kava")
    reasoning = narrow.think(QUESTIONS[1])
    left = MOST - columns(narrow, QUESTIONS[1])
    assert narrow.continue_from(reasoning, min_new_tokens=left).shape == (1, left)
    for most, wanted, limit in ((left, left + 1, ()), (3, 4, (3,))):
        with refused("reasoning.minimum-too-high", "min_new_tokens") as caught:
            narrow.continue_from(reasoning, *limit, min_new_tokens=wanted)
        assert f"is {wanted}," in str(caught.value) and f"for {most} new" in str(caught.value)


def test_a_thought_that_fills_the_positions_cannot_be_continued():
    narrow, wide = two("llama", "kava")
    with refused("reasoning.no-room-for-answer") as caught:
        narrow.continue_from(wide.think(words(40, seed=1)))
    assert f"{MOST} positions" in str(caught.value)


def test_an_evaluation_names_the_row_before_it_begins(monkeypatch):
    narrow, _ = two("gpt2", "kava")
    rows = [Example("short", QUESTIONS[0], (), "7"), Example("far-too-long", words(60, 1), (), "7")]
    monkeypatch.setattr(type(narrow), "think_about", None)
    with refused("reasoning.question-too-long", "the question of row 'far-too-long'") as caught:
        evaluate(narrow, rows, 2, 4)
    assert "row 'far-too-long' has 61 tokens" in str(caught.value)


# -- commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with 48 learned positions, beside its backbone."""
    path = tmp_path_factory.mktemp("narrow")
    thinker = wrap(bare("gpt2", max_position_embeddings=MOST), "kava", drop_last_step=False)
    thinker.save_pretrained(path)
    return path


def test_ask_says_where_an_answer_was_cut_off(kava, folder):
    status, said = kava("ask", folder, QUESTIONS[1])
    left = MOST - 27 - 7 - 4  # BOS and 26 words, <bot>, 5 latents, <eot>, "The answer is:"
    assert status == 0
    assert f"cut off at {left} new tokens, where the backbone's {MOST} positions end" in said
    status, said = kava("ask", folder, QUESTIONS[1], "--max-new-tokens", 2)
    assert "cut off at 2 new tokens\n" in said


@pytest.mark.parametrize("command", ["ask", "inspect"])
def test_a_question_that_is_too_long_is_one_line(kava, folder, tmp_path, command):
    output = ("-o", tmp_path / "page.html") if command == "inspect" else ()
    status, said = kava(command, folder, words(60, seed=1), *output)
    assert status == 2 and len(said.splitlines()) == 1 and list(tmp_path.iterdir()) == []
    assert (said.code, said.key) == ("reasoning.question-too-long", "the question")
    assert "61 tokens" in said and f"{MOST} positions" in said


def test_steps_that_are_too_long_are_one_line(kava, folder, tmp_path):
    words_of = ("inspect", folder, QUESTIONS[0], "-o", tmp_path / "page.html")
    status, said = kava(*words_of, "--steps", words(50, seed=2), "--answer", "7")
    assert status == 2 and len(said.splitlines()) == 1 and list(tmp_path.iterdir()) == []
    assert said.code == "inspect.too-long" and f"{MOST} positions" in said


def test_a_line_that_is_too_long_is_named(kava, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"w1 w2\n\n{words(60, 1)}\nw3\n"))
    status, said = kava("ask", folder, "--max-new-tokens", 2)
    assert status == 2 and said.count("forward passes") == 1
    assert said.code == "reasoning.question-too-long"
    assert "kava: ask: line 3 of the input: " in said and "has 61 tokens" in said


def test_eval_names_the_row_of_any_task_and_writes_nothing(kava, folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    asked = [{"id": f"r{n}", "question": words(n, 1), "answer": "7"} for n in (3, 60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    status, said = kava("eval", folder, "--task", "rows", "--file", rows, "-o", tmp_path / "run")
    assert status == 2 and len(said.splitlines()) == 1 and not (tmp_path / "run").exists()
    assert (said.code, said.key) == ("reasoning.question-too-long", "the question of row 'r60'")
    assert "61 tokens" in said


def test_adapters_count_the_same_positions():
    thinker = reasoner("gpt2", "kava", **lora())
    assert context_window.max_positions(thinker) == 256
    with refused("reasoning.question-too-long") as caught:
        thinker.think(words(260, seed=1))
    assert "256 positions" in str(caught.value)


def test_positions_of_pads_are_held_back_only_while_a_row_waits():
    narrow, _ = two("gpt2", "kava")
    narrow.generate(QUESTIONS)
    assert not narrow.lm._forward_pre_hooks
    with pytest.raises(IndexError):
        narrow.lm(torch.ones(1, MOST + 1, dtype=torch.long))
