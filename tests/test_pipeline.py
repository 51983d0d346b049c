"""`kava.pipeline` gives what transformers' own pipeline gives, in the same form."""

from pathlib import Path

import pytest
import torch
from tiny import reasoner
from transformers import pipeline as of_transformers

import kava
from kava.errors import KavaError

QUESTIONS = ["w1 w2 w3", "w4", "w5 w6 w7 w8"]
CHAT = [{"role": "user", "content": "w1 w2 w3"}]
OTHER = [{"role": "user", "content": "w4"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "w1 w2"},
                                      {"type": "text", "text": " w3"}]}]  # fmt: skip


@pytest.fixture
def model():
    return reasoner("llama", "kava")


def test_answers_are_those_of_generate(model):
    ask = kava.pipeline("text-generation", model=model)
    texts = model.generate(QUESTIONS, 5)
    (one,) = ask(QUESTIONS[0], max_new_tokens=5, return_full_text=False)
    assert one == {"generated_text": texts[0]}
    for size in (1, 2, 8):
        several = ask(QUESTIONS, max_new_tokens=5, batch_size=size, return_full_text=False)
        assert several == [[{"generated_text": text}] for text in texts]
    (full,) = ask(QUESTIONS[0], max_new_tokens=5)
    assert full == {"generated_text": f"{QUESTIONS[0]} {texts[0]}"}


@pytest.mark.parametrize(
    "given", (QUESTIONS[0], QUESTIONS[:1], QUESTIONS, CHAT, [CHAT], [CHAT, OTHER])
)
def test_the_form_is_that_of_transformers(model, given):
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    theirs = of_transformers("text-generation", model=model.lm, tokenizer=model.tokenizer)
    for full in (True, False):
        options = {"return_full_text": full, "max_new_tokens": 3}
        ours, plain = kava.pipeline(model=model)(given, **options), theirs(given, **options)
        assert shape(ours) == shape(plain)


def shape(value):
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(one) for one in value] if isinstance(value, list) else type(value)


def test_options_reach_generate_and_the_thought(model):
    ask = kava.pipeline(model=model)
    torch.manual_seed(3)
    several = ask(
        QUESTIONS[:2], max_new_tokens=4, do_sample=True, num_return_sequences=3, batch_size=2
    )
    assert [len(one) for one in several] == [3, 3]
    assert all(s["generated_text"].startswith(q) for q, one in zip(QUESTIONS, several, strict=False)
               for s in one)  # fmt: skip
    fewer = ask(QUESTIONS[0], max_new_tokens=5, num_iterations=0, return_full_text=False)
    assert fewer[0]["generated_text"] == model.generate(QUESTIONS[0], 5, num_iterations=0)


def test_chats_in_every_form_are_the_questions_in_them(model):
    ask = kava.pipeline(model=model, batch_size=2)
    options = {"max_new_tokens": 5, "return_full_text": False}
    one, other = (ask(question, **options) for question in ("w1 w2 w3", "w4"))
    assert one != other
    for chat in (CHAT, CHAT[0], PARTS, PARTS[0]):
        assert ask(chat, **options) == one
    assert ask([CHAT, OTHER, PARTS], **options) == [one, other, one]
    assert ask((tuple(CHAT), "w4"), **options) == [one, other]
    text = one[0]["generated_text"]
    for chat in (CHAT, PARTS):
        wanted = [*chat, {"role": "assistant", "content": text}]
        assert ask(chat, max_new_tokens=5) == [{"generated_text": wanted}]
        assert ask(chat[0], max_new_tokens=5) == [{"generated_text": wanted}]


def test_a_device_can_be_chosen(model):
    """`meta` is the one device beside the CPU that every machine has."""
    assert kava.pipeline(model=model).device.type == "cpu"
    for device in (-1, "cpu", torch.device("cpu")):
        assert kava.pipeline(model=model, device=device).device.type == "cpu"
    assert kava.pipeline(model=model, device="meta").device.type == "meta"
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": -1}, "batch_size is -1; give a whole number, 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; give"),
        ({"batch_size": 2.0}, "batch_size is 2.0; give"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": 99}, "device 99 cannot be used"),
        ({"tokenizer": "gpt2"}, "tokenizer cannot be given here; a reasoner has its own"),
        ({"torch_dtype": "auto"}, "torch_dtype cannot be given here; give dtype"),
        ({"dtype": torch.bfloat16}, "dtype is for a model given by name; open this one with"),
        ({"device_map": "auto"}, "device_map cannot be given here; give device"),
        ({"temperature": 1.0}, "temperature cannot be given here; .* in the call"),
    ],
)
def test_how_a_model_is_not_opened(model, options, said):
    with pytest.raises(KavaError, match=f"^pipeline: {said}"):
        kava.pipeline(model=model, **options)
    with pytest.raises(KavaError, match="model is a LlamaForCausalLM; give a Reasoner"):
        kava.pipeline(model=model.lm)


def test_a_name_is_opened_in_the_dtype_asked_for(model, tmp_path):
    model.save_pretrained(tmp_path / "run")
    model.lm.save_pretrained(tmp_path / "plain")
    model.tokenizer.save_pretrained(tmp_path / "plain")
    for name in ("run", "plain"):
        place = str(tmp_path / name)
        for dtype, got in (("bfloat16", torch.bfloat16), ("auto", torch.float32)):
            assert kava.pipeline(model=place, dtype=dtype, device=-1).model.lm.dtype == got
        with pytest.raises(KavaError, match=r"^dtype 'int8' is not possible"):
            kava.pipeline(model=place, dtype="int8")


def test_options_that_say_nothing_are_taken(model):
    ask = kava.pipeline(model=model, tokenizer=None, torch_dtype=None, device=None)
    options = {"return_tensors": False, "max_length": None, "return_text": True}
    assert ask("w1", max_new_tokens=3, **options) == ask("w1", max_new_tokens=3)


@pytest.mark.parametrize(
    ("option", "value"),
    [("return_tensors", True), ("clean_up_tokenization_spaces", True), ("max_length", 40),
     ("return_text", False), ("prefix", "w1"), ("handle_long_generation", "hole"),
     ("stop_sequence", "w1"), ("truncation", True), ("tokenizer_encode_kwargs", {})],
)  # fmt: skip
def test_options_of_a_call_that_are_not_possible_are_named(model, option, value):
    with pytest.raises(KavaError, match=f"^{option} is not possible for a reasoner; "):
        kava.pipeline(model=model)("w1", **{option: value})


@pytest.mark.parametrize("folder", [str, Path])
def test_a_name_is_opened(folder):
    ask = kava.pipeline(model=folder("checkpoints/quickstart/kava"))
    question = (
        "Tuesday brought Ann 3 more than Monday. Monday brought Ann 4 pens. "
        "How many pens did Tuesday bring Ann?"
    )
    assert ask(question, return_full_text=False) == [{"generated_text": "The answer is:7"}]


@pytest.mark.parametrize(
    ("task", "model_given", "question", "said"),
    [
        ("summarization", True, "w1", "a reasoner does 'text-generation'"),
        ("text-generation", False, "w1", "model is missing"),
        ("text-generation", True, [], "no question"),
        ("text-generation", True, "", "question 1 must be"),
        ("text-generation", True, [*CHAT, *CHAT], "exactly one message"),
        ("text-generation", True, [{"role": "system", "content": "w1"}], "got: system"),
        ("text-generation", True, [CHAT, [*CHAT, *CHAT]], "exactly one message"),
        ("text-generation", True, ["w1", [1]], r"one message, not \[1\]"),
        ("text-generation", True, [1], "one message, not 1"),
        ("text-generation", True, [[]], r"one message, not \[\]"),
        ("text-generation", True, [{"role": "user"}], "content of a message is a text, .*got None"),
        (
            "text-generation",
            True,
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            "content of a message is a text, or a list of parts",
        ),
    ],
)
def test_what_is_not_possible_is_one_line(model, task, model_given, question, said):
    with pytest.raises(KavaError, match=said):
        kava.pipeline(task, model=model if model_given else None)(question)


def test_a_batch_size_of_a_call_is_checked_too(model):
    with pytest.raises(KavaError, match="batch_size is -1; give a whole number"):
        kava.pipeline(model=model)(QUESTIONS, batch_size=-1)
