"""Parts of a text have the ids of the whole text, also if a tokenizer writes blanks before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kava.reasoning.batching import Encoder
from kava.types import ANSWER_PROMPT, Example

BLANK = "▁"
TEXTS = ["Ann has 3 pens. She gets 4.", "<<4+3=7>><<3+4=7>>", "The answer is: 18", "<< x 1 <<2"]


def prepended(tokenizer):
    """As Llama 2's and TinyLlama's tokenizer.json: before every text, whatever it begins with."""
    steps = [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
    tokenizer.normalizer = normalizers.Sequence(steps)


def metaspace(tokenizer):
    """As Mistral's and Phi-3's: before a text that does not begin with a blank."""
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, "first", split=False)


def byte_level(tokenizer):
    """With `add_prefix_space`."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def made(kind, texts):
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    kind(inner)
    letters = [*pre_tokenizers.ByteLevel.alphabet(), *"".join(TEXTS), BLANK]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>"], initial_alphabet=letters,
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=(prepended, metaspace, byte_level), scope="module")
def encoder(request):
    # No token spans two words, as in SentencePiece.
    words = [word for text in TEXTS for word in text.split()]
    return Encoder(made(request.param, words), drop_last_step=False)


def ids(encoder, text):
    return encoder.tokenizer(text, add_special_tokens=False).input_ids


@given(
    steps=st.lists(st.sampled_from(["<<4+3=7>>", "<<3+4=7>>", "Ann gets 4.", "<<2"]), max_size=4),
    answer=st.sampled_from(["18", "7", "-3", "x y"]),
)
def test_steps_and_answer_have_the_ids_of_the_whole_text(encoder, steps, answer):
    row = encoder.row(Example("i", "Ann has 3", tuple(steps), answer))
    text = "".join(step if step.startswith("<<") else f" {step}" for step in steps)
    assert row.steps == (ids(encoder, text) if steps else [])
    assert row.answer[:-1] == ids(encoder, f"{ANSWER_PROMPT} {answer}")
    assert len(row.step_of) == len(row.steps) and row.step_of == sorted(row.step_of)


def test_each_step_keeps_its_own_tokens(encoder):
    row = encoder.row(Example("i", "Ann has 3", ("<<4+3=7>>", "Ann gets 4."), "18"))
    first = [t for t, step in zip(row.steps, row.step_of, strict=True) if step == 0]
    assert first == ids(encoder, "<<4+3=7>>")


def test_an_answer_is_not_lost_to_a_token_that_spans_prompt_and_answer():
    encoder = Encoder(made(metaspace, TEXTS), drop_last_step=False)
    assert len(ids(encoder, "The answer is: 18")) == 1
    row = encoder.row(Example("i", "Ann has 3", (), "18"))
    assert row.answer == [*encoder.prompt, *ids(encoder, " 18"), encoder.tokenizer.eos_token_id]


def test_many_rows_are_encoded_as_each_alone(encoder):
    rows = [Example(str(i), "Ann", ("<<4+3=7>>", "<<3+4=7>>")[: i % 3], str(i)) for i in range(6)]
    assert encoder.rows(rows) == [encoder.row(row) for row in rows]
