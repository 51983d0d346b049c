"""Options of generate: those that cannot be are refused by name, the others do what they say."""

import pytest
import torch
from refusals import refused
from tiny import VOCABULARY, reasoner
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

import kava as package
from kava.backbones.tiny import tiny_backbone
from kava.reasoning.open import open_reasoner

QUESTIONS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w12"]


@pytest.fixture
def model():
    return reasoner("llama", "kava")


@pytest.mark.parametrize(
    ("option", "value"),
    [("use_cache", False), ("return_dict_in_generate", True), ("max_length", 9),
     ("generation_config", GenerationConfig()), ("cache_implementation", "static"),
     ("input_ids", torch.ones(1, 1)), ("attention_mask", torch.ones(1, 1)),
     ("past_key_values", ()), ("inputs_embeds", torch.ones(1, 1, 32)), ("synced_gpus", True),
     ("min_length", 9)],
)  # fmt: skip
def test_what_a_thought_leaves_no_choice_of_is_refused_by_name(model, option, value):
    with refused("reasoning.option-not-possible", option):
        model.generate("w1", 3, **{option: value})
    with refused("reasoning.option-not-possible", option):
        package.pipeline(model=model)("w1", **{option: value})


def test_options_that_ask_for_nothing_new_are_taken(model):
    nothing = {"use_cache": True, "return_dict_in_generate": False, "max_length": None}
    nothing |= {"min_length": 0, "repetition_penalty": 1}
    assert model.generate("w1", 5, **nothing) == model.generate("w1", 5)


@pytest.mark.parametrize("value", [0, -1, 1.5, "7", None, True])
def test_new_tokens_are_a_whole_number(model, value):
    with refused("reasoning.bad-number", "max_new_tokens") as caught:
        model.generate("w1", value)
    assert f"is {value!r}; " in str(caught.value) and "1 or more" in str(caught.value)


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
@pytest.mark.parametrize("method", ["think", "generate", "prompt_embeds"])
def test_iterations_are_a_whole_number(model, value, method):
    with refused("reasoning.bad-number", "num_iterations") as caught:
        getattr(model, method)("w1", num_iterations=value)
    assert f"is {value!r}; " in str(caught.value) and "0 or more" in str(caught.value)


def test_embeddings_are_of_one_question(model):
    with refused("reasoning.one-question", "question"):
        model.prompt_embeds(QUESTIONS)


# -- several answers -----------------------------------------------------------------------------


def test_several_answers_stand_in_the_place_of_their_question(model):
    options = {"max_new_tokens": 5, "num_beams": 4, "num_return_sequences": 3}
    together = model.generate(QUESTIONS, **options)
    alone = [model.generate(question, **options) for question in QUESTIONS]
    assert together == alone and all(len(texts) == len(set(texts)) == 3 for texts in alone)
    flat = [one.text for one in model.answer(model.think(QUESTIONS), **options)]
    assert flat == [text for texts in together for text in texts]
    found = model.generate(QUESTIONS[0], return_reasoning=True, **options)
    assert found.text == alone[0] and found.reasoning.prompt.shape[0] == 1
    one = {**options, "num_return_sequences": 1}
    assert [[text] for text in model.generate(QUESTIONS, **one)] == [t[:1] for t in alone]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"logits_processor": None}])
def test_repetitions_are_penalised_in_each_row_whatever_pads_it_has(model, options):
    options = {"max_new_tokens": 12, **options}
    penalised = {**options, "repetition_penalty": 1.3}
    together = model.generate(QUESTIONS, **penalised)
    assert together == [model.generate(question, **penalised) for question in QUESTIONS]
    assert together != model.generate(QUESTIONS, **options)


# -- where a row ends ----------------------------------------------------------------------------


class At(StoppingCriteria):
    """Ends a row at one of some tokens."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids, scores, **_):
        return torch.isin(input_ids[:, -1], self.tokens)


def counted(model, questions, **options):
    return model.answer(model.think(questions), 30, **options)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("pad", ["<pad>", "</s>", "w7"])
def test_pads_after_a_stop_are_neither_counted_nor_read(model, beams, pad):
    """Alone a row has no pads."""
    model.tokenizer.pad_token = pad
    free = counted(model, QUESTIONS, num_beams=beams)
    stops = [model.tokenizer.convert_tokens_to_ids(row.text.split()[-3]) for row in free[:2]]
    options = {"stopping_criteria": StoppingCriteriaList([At(stops)]), "num_beams": beams}
    together = counted(model, QUESTIONS, **options)
    assert together == [counted(model, [question], **options)[0] for question in QUESTIONS]
    lengths = [row.generated_tokens for row in together]
    assert len(set(lengths)) > 1 and min(lengths) < 30
    assert [row.forward_passes for row in together] == [2 + length for length in lengths]
    assert all(row.finished for row in together if row.generated_tokens < 30)


def test_a_criterion_is_asked_once_for_each_token(model):
    class Third(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids, scores, **_):
            self.calls += 1
            return torch.full((len(input_ids),), self.calls == 3)

    found = counted(model, QUESTIONS, stopping_criteria=[Third()])
    assert [row.generated_tokens for row in found] == [3] * 4 and all(r.finished for r in found)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A backbone whose tokenizer is one of letters; stop strings need one."""
    folder = tmp_path_factory.mktemp("letters")
    tiny_backbone("llama", folder)
    return open_reasoner(str(folder))


def test_stop_strings_need_no_tokenizer_and_end_each_row_by_itself(letters):
    questions = ["How many?", "Ann has 4 pens.", "Why?"]
    free = counted(letters, questions)
    stop = next(c for c in free[0].text[8:] if c.isascii() and c.isalpha())
    together = counted(letters, questions, stop_strings=[stop])
    assert together == [counted(letters, [q], stop_strings=stop)[0] for q in questions]
    ids = letters.continue_from(letters.think(questions), 30).tolist()
    for row, tokens, whole in zip(together, ids, free, strict=True):
        texts = [letters.tokenizer.decode(tokens[:n]) for n in range(1, whole.generated_tokens + 1)]
        ends = [n for n, text in enumerate(texts, start=1) if stop in text]
        assert row.generated_tokens == min(ends, default=whole.generated_tokens)
        assert row.finished == (bool(ends) or whole.finished)
    assert len({row.generated_tokens for row in together}) > 1


@pytest.mark.parametrize("several", [False, True])
def test_another_end_of_sequence_and_pad(model, several):
    """As with a tokenizer that has these."""
    free = counted(model, QUESTIONS)
    ids = model.tokenizer.convert_tokens_to_ids([row.text.split()[-3] for row in free[:2]])
    eos = [*ids, model.tokenizer.eos_token_id] if several else ids[0]
    pad = VOCABULARY.index("w19")
    together = counted(model, QUESTIONS, eos_token_id=eos, pad_token_id=pad)
    assert together == [counted(model, [q], eos_token_id=eos)[0] for q in QUESTIONS]
    assert together[0].finished and together[0].generated_tokens < free[0].generated_tokens
    tokens = model.continue_from(model.think(QUESTIONS), 30, eos_token_id=eos, pad_token_id=pad)
    for row, answer in zip(tokens.tolist(), together, strict=True):
        assert set(row[answer.generated_tokens :]) <= {pad}
    texts = package.pipeline(model=model)(
        QUESTIONS, max_new_tokens=30, return_full_text=False, eos_token_id=eos, pad_token_id=pad
    )
    assert [one["generated_text"] for (one,) in texts] == [row.text for row in together]


# -- text that is none ---------------------------------------------------------------------------


def test_half_a_surrogate_pair_is_no_question(model):
    with refused("system.not-unicode", "question 2") as caught:
        model.generate(["w1", "w1 \ud83d"])
    assert r"character 4 is \ud83d" in str(caught.value)
    with refused("system.not-unicode", "the question"):
        model.prompt_embeds("\udc00 w1")
    assert model.generate("w1 \U0001f600", 2)  # a whole one is


def test_a_message_is_no_question(model):
    """Its keys would be asked."""
    message = {"role": "user", "content": "w1"}
    for ask in (model.think, model.generate):
        with refused("reasoning.not-a-question", "dict"):
            ask(message)
