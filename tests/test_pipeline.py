"""`kava.pipeline` gives what transformers' own pipeline gives, in the same form."""

import pytest
import torch
from tiny import reasoner
from transformers import pipeline as of_transformers

import kava
from kava.errors import KavaError

QUESTIONS = ["w1 w2 w3", "w4", "w5 w6 w7 w8"]
CHAT = [{"role": "user", "content": "w1 w2 w3"}]


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


@pytest.mark.parametrize("given", (QUESTIONS[0], QUESTIONS[:1], QUESTIONS, CHAT))
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


def test_a_name_is_opened():
    ask = kava.pipeline(model="checkpoints/quickstart/kava")
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
    ],
)
def test_what_is_not_possible_is_one_line(model, task, model_given, question, said):
    with pytest.raises(KavaError, match=said):
        kava.pipeline(task, model=model if model_given else None)(question)
