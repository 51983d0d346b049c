"""Our `rkv` inside NVIDIA's kvpress, against loops over Python numbers.

kvpress holds transformers back (0.5.5 below 5.3), so this runs in an environment of its own:
`make test-kvpress`. It uses nothing of the package but the press.
"""

import math

import pytest
import torch

kvpress = pytest.importorskip(
    "kvpress", reason="needs NVIDIA's kvpress, in an environment of its own: make test-kvpress"
)

from refusals import refused  # noqa: E402
from transformers import (  # noqa: E402
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kava.inference.kvpress import RKVPress  # noqa: E402

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "initializer_range": 0.25,
}  # fmt: skip
WINDOW, LAM, LENGTH = 3, 0.3, 14


@pytest.fixture(params=("llama", "qwen3"))
def model(request):
    """Grouped heads; Qwen3 normalises its queries."""
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**SIZES)).eval()


def read(model, ids, press=None):
    """The cache after a prompt, and each layer's rotated queries as they reached the attention."""
    cache, queries = DynamicCache(), {}
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *args, **kwargs):
        queries[len(queries)] = query
        return attend(query, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = spy
    try:
        with torch.no_grad():
            if press is None:
                model(ids, past_key_values=cache)
            else:
                with press(model):
                    model(ids, past_key_values=cache)
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend
    return cache, queries


def softmax(numbers):
    powers = [math.exp(n - max(numbers)) for n in numbers]
    return [p / sum(powers) for p in powers]


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def slow_scores(keys, queries):
    """S = lambda I + (1 - lambda) R of one head's keys before the window; queries[g][a]."""
    count, scale = len(keys), len(keys[0]) ** -0.5
    importance, redundancy = [0.0] * count, []
    for a in range(WINDOW):
        logits = [max(dot(group[a], key) for group in queries) * scale for key in keys]
        for c, weight in enumerate(softmax(logits)):
            importance[c] += weight / WINDOW
    for i in range(count):
        others = [
            dot(keys[i], keys[j]) / math.sqrt(dot(keys[i], keys[i]) * dot(keys[j], keys[j]))
            for j in range(count)
            if j != i
        ]
        redundancy.append(-sum(others) / count)
    redundancy = softmax(redundancy)
    return [LAM * i + (1 - LAM) * r for i, r in zip(importance, redundancy, strict=True)]


@pytest.mark.parametrize("ratio", (0.25, 0.5))
def test_a_prompt_keeps_what_the_equations_keep(model, ratio):
    ids = torch.randint(0, 40, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    whole, queries = read(model, ids)
    small, _ = read(model, ids, RKVPress(ratio, window=WINDOW, lam=LAM))
    budget = int(LENGTH * (1 - ratio))
    # The second layer reads what the first wrote before it was compressed.
    for layer in (0, 1):
        held, full = small.layers[layer], whole.layers[layer]
        assert held.keys.shape == (3, 2, budget, 8)
        for b in range(3):
            for h in range(2):
                keys = full.keys[b, h].double().tolist()
                observers = queries[layer][b, 2 * h : 2 * h + 2, -WINDOW:].double().tolist()
                scores = slow_scores(keys[:-WINDOW], observers)
                best = sorted(range(len(scores)), key=lambda c: -scores[c])[: budget - WINDOW]
                kept = sorted(best) + list(range(LENGTH - WINDOW, LENGTH))
                distance = (held.keys[b, h][:, None] - full.keys[b, h]).norm(dim=-1)
                found = distance.argmin(1)
                assert distance.min(1).values.max() < 1e-5
                assert sorted(found.tolist()) == kept
                torch.testing.assert_close(held.values[b, h], full.values[b, h][found])


def test_it_works_while_decoding(model):
    ids = torch.randint(0, 40, (2, 10), generator=torch.Generator().manual_seed(2))
    press = kvpress.DecodingPress(
        RKVPress(window=WINDOW), compression_interval=5, target_size=8, hidden_states_buffer_size=4
    )
    model.generation_config.eos_token_id = None
    with press(model):
        out = model.generate(
            ids, max_new_tokens=16, do_sample=False, return_dict_in_generate=True, pad_token_id=0
        )
    assert out.sequences.shape == (2, 26)
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [8, 8]


def test_fewer_tokens_than_the_window_are_no_error(model):
    small, _ = read(model, torch.tensor([[3, 4, 5, 6]]), RKVPress(0.5, window=8))
    assert small.layers[0].keys.shape[2] == 2


@pytest.mark.parametrize("settings", ({"window": 0}, {"lam": 1.5}))
def test_bad_settings_are_refused(settings):
    with refused("reasoning.bad-setting", *settings):
        RKVPress(0.5, **settings)
