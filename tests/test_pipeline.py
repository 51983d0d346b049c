"""`kava.pipeline` gives what transformers' own pipeline gives, in the same form."""

from pathlib import Path

import pytest
import torch
from refusals import refused
from tiny import reasoner
from transformers import pipeline as of_transformers

import kava

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
    ("options", "code", "key", "value"),
    [
        ({"batch_size": -1}, "reasoning.bad-number", "batch_size", "is -1;"),
        ({"batch_size": 0}, "reasoning.bad-number", "batch_size", "is 0;"),
        ({"batch_size": 2.0}, "reasoning.bad-number", "batch_size", "is 2.0;"),
        ({"device": "gpu"}, "inference.no-device", "gpu", "device 'gpu'"),
        ({"device": 99}, "inference.no-device", "99", "device 99"),
        ({"tokenizer": "gpt2"}, "inference.misplaced-option", "tokenizer", ""),
        ({"torch_dtype": "auto"}, "inference.misplaced-option", "torch_dtype", "use dtype"),
        ({"dtype": torch.bfloat16}, "inference.misplaced-dtype", "dtype", ""),
        ({"device_map": "auto"}, "inference.misplaced-option", "device_map", "use device"),
        ({"temperature": 1.0}, "inference.misplaced-option", "temperature", "when calling"),
    ],
)
def test_how_a_model_is_not_opened(model, options, code, key, value):
    with refused(code, key) as caught:
        kava.pipeline(model=model, **options)
    assert str(caught.value).startswith("pipeline: ") and value in str(caught.value)


def test_a_model_of_transformers_is_no_reasoner(model):
    with refused("inference.not-a-model", "LlamaForCausalLM"):
        kava.pipeline(model=model.lm)


def test_a_name_is_opened_in_the_dtype_asked_for(model, tmp_path):
    model.save_pretrained(tmp_path / "run")
    model.lm.save_pretrained(tmp_path / "plain")
    model.tokenizer.save_pretrained(tmp_path / "plain")
    for name in ("run", "plain"):
        place = str(tmp_path / name)
        for dtype, got in (("bfloat16", torch.bfloat16), ("auto", torch.float32)):
            assert kava.pipeline(model=place, dtype=dtype, device=-1).model.lm.dtype == got
        with refused("backbones.bad-dtype", "dtype") as caught:
            kava.pipeline(model=place, dtype="int8")
        assert "'int8'" in str(caught.value)


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
    with refused("reasoning.option-not-possible", option):
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
    ("question", "code", "key", "value"),
    [
        ([], "reasoning.no-question", None, ""),
        ("", "reasoning.empty-question", "question 1", "not ''"),
        ([*CHAT, *CHAT], "inference.not-one-question", None, "got: user, user"),
        ([{"role": "system", "content": "w1"}], "inference.not-one-question", None, "got: system"),
        ([CHAT, [*CHAT, *CHAT]], "inference.not-one-question", None, "got: user, user"),
        (["w1", [1]], "reasoning.not-a-question", "list", "not [1]"),
        ([1], "reasoning.not-a-question", "int", "not 1"),
        ([[]], "reasoning.not-a-question", "list", "not []"),
        ([{"role": "user"}], "inference.bad-content", "content", "got None"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            "inference.bad-content",
            "content",
            "got [{'type': 'image'",
        ),
    ],
)
def test_what_is_no_question_is_one_line(model, question, code, key, value):
    with refused(code, key) as caught:
        kava.pipeline(model=model)(question)
    assert value in str(caught.value) and "\n" not in str(caught.value)


def test_another_task_and_no_model_are_refused(model):
    with refused("inference.unknown-task", "summarization") as caught:
        kava.pipeline("summarization", model=model)
    assert "'text-generation'" in str(caught.value)
    with refused("inference.no-model", "model"):
        kava.pipeline("text-generation", model=None)


def test_a_batch_size_of_a_call_is_checked_too(model):
    with refused("reasoning.bad-number", "batch_size") as caught:
        kava.pipeline(model=model)(QUESTIONS, batch_size=-1)
    assert "is -1;" in str(caught.value)
