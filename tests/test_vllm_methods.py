"""The plugin in vLLM with each method that thinks in latents, on random weights of each family."""

import pytest
import tiny
import torch
from vllm_here import GREEDY, kava_ids, serving, vllm

from kava.reasoning.export import export
from kava.reasoning.methods import LatentMethod
from kava.recipe import registry

pytestmark = pytest.mark.filterwarnings("ignore")
#: Heads of a size that vLLM's attention on a CPU supports; its Qwen2 takes hidden size / heads.
#: Weights of a wider backbone are smaller, or its latents amplify rounding errors.
SIZES = {
    "llama": {"head_dim": 32},
    "qwen2": {
        "hidden_size": 128, "head_dim": 32, "initializer_range": 0.125, "use_sliding_window": False,
    },
    "qwen3": {"head_dim": 32},
}  # fmt: skip
LATENT = [
    (name, {})
    for name in registry.names("methods")
    if issubclass(registry.find("methods", name), LatentMethod)
]
OTHERS = [
    ("kava", {"kv": {"weight": 1.0, "projection": "linear"}}),  # which only the loss needs
    ("kava", {"latent_readout": {"weight": 1.0}}),
    ("kava", {"latent_update": "residual", "projection": "mlp"}),
    ("pccot", {"projection": "none", "num_iterations": 3}),
]
QUESTIONS = [tiny.words(count, seed) for seed, count in enumerate((3, 1, 12, 7))]


def exported(folder, family, method="kava", sizes=None, **changes):
    model = tiny.bare(family, **(SIZES[family] if sizes is None else sizes))
    reasoner = tiny.wrap(model, method, **changes)
    return reasoner, export(reasoner, folder / "exported")


def thoughts(model, questions, iterations):
    return model.embed_multimodal(question=questions, iterations=iterations)


@pytest.mark.parametrize(
    ("method", "changes", "family"),
    [(*each, family) for each in LATENT for family in SIZES]
    + [(*each, "llama") for each in OTHERS],
)
def test_thoughts_and_answers_are_those_of_kava(tmp_path, method, changes, family):
    reasoner, folder = exported(tmp_path, family, method, **changes)
    encoded = reasoner.encoder.questions(QUESTIONS)
    given = [0, 1, 2, 1] if reasoner.method.iterates else [None] * len(encoded)
    asked = [torch.tensor([ids]) for ids in encoded]
    numbers = torch.tensor([number or 0 for number in given])
    with serving(folder, max_num_batched_tokens=64) as engine:
        (found,) = engine.apply_model(lambda model: thoughts(model, asked, numbers))
        answers = engine.generate(QUESTIONS, GREEDY, use_tqdm=False)
    for question, ids, number, thought in zip(QUESTIONS, encoded, given, found, strict=True):
        embeds = reasoner.prompt_embeds(question, number)[0, len(ids) :]
        expected = embeds[: reasoner.recipe.num_latents + 2]
        assert thought.shape == expected.shape
        torch.testing.assert_close(thought, expected, rtol=1e-4, atol=1e-4)
    ids = [list(one.outputs[0].token_ids) for one in answers]
    assert ids == kava_ids(reasoner, QUESTIONS)


def test_the_first_token_of_lotus_is_the_likeliest_that_does_not_end_the_answer(tmp_path):
    reasoner = tiny.wrap(tiny.bare("llama", **SIZES["llama"], tie_word_embeddings=False), "lotus")
    result = reasoner.think(QUESTIONS[:1])
    with torch.no_grad():  # EOS is the likeliest token, if it is allowed
        head = reasoner.lm.get_output_embeddings().weight
        head[reasoner.tokenizer.eos_token_id] = 2 * head[result.prompt[0, 0]]
    first = reasoner.think(QUESTIONS[:1]).prompt[0, 0]
    sampled = vllm.SamplingParams(temperature=2.0, max_tokens=4, n=16, seed=1)
    with serving(export(reasoner, tmp_path / "exported")) as engine:
        (output,) = engine.generate(QUESTIONS[:1], sampled, use_tqdm=False)
    assert {one.token_ids[0] for one in output.outputs} == {int(first)}
    assert len({tuple(one.token_ids) for one in output.outputs}) > 1


@pytest.mark.parametrize(
    ("family", "changes", "settings", "named"),
    [
        ("gemma2", {}, {}, "KavaGemma2ForCausalLM"),  # soft caps
        ("gpt2", {}, {}, "KavaGPT2LMHeadModel"),
        ("llama", {"method": "cot"}, {}, "'cot'"),
        ("qwen2", {}, {}, "sliding windows"),
        ("llama", {}, {"pipeline_parallel_size": 2}, "pipeline parallelism"),
        (
            "llama",
            {
                "method": "aligned",
                "num_latents": 4,
                "latent_readout": {"width": 2},
                "method_options": {"stop": True},
            },
            {},
            "method_options.stop",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(tmp_path, family, changes, settings, named):
    _, folder = exported(tmp_path, family, sizes={}, **changes)
    with pytest.raises(ValueError, match=named) as error, serving(folder, **settings):
        pass
    lines = [line for line in str(error.value).splitlines() if named in line]
    assert len(lines) == 1 and len(lines[0]) < 500
