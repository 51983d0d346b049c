"""The plugin in vLLM itself: an exported folder answers plain text as `Reasoner` does."""

import pytest
from vllm_here import CHECKPOINT, GREEDY, kava_ids, serving, vllm

from kava import Reasoner
from kava.data.synthetic import generate
from kava.reasoning.export import export

# Those of vLLM and of the versions that it brings.
pytestmark = pytest.mark.filterwarnings("ignore")
QUESTIONS = [example.question for example in generate("test", 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(Reasoner.from_pretrained(CHECKPOINT), tmp_path_factory.mktemp("e") / "exported")


@pytest.fixture(scope="module")
def engine(folder):
    """Chunks of 64 tokens, which cut the latents, and blocks of 32 tokens in the prefix cache."""
    settings = {"enable_prefix_caching": True, "enable_chunked_prefill": True}
    with serving(folder, max_num_batched_tokens=64, max_num_seqs=32, **settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(folder):
    """Token ids of the answers by kava itself, for each T."""
    reasoner = Reasoner.from_pretrained(folder)
    return {number: kava_ids(reasoner, QUESTIONS, number) for number in (None, 0, 1, 2)}


def answers(engine, prompts):
    outputs = engine.generate(prompts, GREEDY, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in outputs], outputs


def asking(question, iterations):
    return {"prompt": question, "mm_processor_kwargs": {"num_iterations": iterations}}


def test_texts_have_the_ids_of_kava(engine, expected):
    assert answers(engine, QUESTIONS)[0] == expected[None]


def test_cached_prefixes_change_nothing(engine, expected):
    answers(engine, QUESTIONS)
    found, outputs = answers(engine, QUESTIONS)
    assert found == expected[None]
    assert sum(one.num_cached_tokens for one in outputs) > 0


def test_each_request_has_its_own_number_of_iterations(engine, expected):
    prompts = [asking(question, at % 3) for at, question in enumerate(QUESTIONS)]
    assert answers(engine, prompts)[0] == [expected[at % 3][at] for at in range(len(QUESTIONS))]
    assert expected[0] != expected[1] != expected[2]


def test_a_chat_is_one_user_message(engine, expected):
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS[:5]]
    outputs = engine.chat(chats, GREEDY, use_tqdm=False)
    assert [list(one.outputs[0].token_ids) for one in outputs] == expected[None][:5]
    with pytest.raises(ValueError, match="system"):
        engine.chat([{"role": "system", "content": "x"}, *chats[0]], GREEDY)


@pytest.mark.parametrize(
    "prompt", ["  ", asking("1 + 1", -1), asking("1 + 1", True), "why? " * 400]
)
def test_a_bad_prompt_is_refused_and_the_next_is_answered(engine, expected, prompt):
    with pytest.raises((ValueError, vllm.exceptions.VLLMValidationError)):
        engine.generate([prompt], GREEDY, use_tqdm=False)
    assert answers(engine, QUESTIONS[:1])[0] == expected[None][:1]
