"""Generating with a compressed cache against a ledger of keys kept by hand, and the laws of it.

The oracle feeds one token at a time without any cache, mask or padding: an attention of its own
holds, for each layer and key/value head, a list of (position, key, value), from which it strikes
what the equations say.
"""

import pytest
import torch
from reference import best, importance, pooled, redundancy, repetition, spans
from refusals import refused
from tiny import VOCABULARY, WIDTH, lora, reasoner, words
from tiny import bare as tied
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import eager_mask

import kava
from kava.backbones import cache as caches
from kava.backbones.attention import IMPLEMENTATION_NAME
from kava.inference.compressed import compressed, plan

SMALL = {"budget": 12, "buffer": 6, "window": 3}
NEW = 25


#: Without sliding windows, whose layers are left alone (below, and in the tests at the end).
WHOLE = {"llama": {}, "gpt2": {}, "qwen2": {"use_sliding_window": False}, "qwen3": {}, "phi3": {}}


@pytest.fixture(params=WHOLE)
def family(request):
    return request.param


def bare(family):
    """A tiny model with a head of its own: with a tied one, a random model repeats itself."""
    model = tied(family, **WHOLE[family])
    model.lm_head = torch.nn.Linear(WIDTH, len(VOCABULARY), bias=False)
    torch.nn.init.normal_(model.lm_head.weight)
    return model


class Ledger:
    """What the oracle remembers: entries[layer][head] and the queries of each layer."""

    def __init__(self):
        self.entries, self.queries, self.position = {}, {}, 0

    def attend(self, module, query, key, value, _mask, scaling=None, **_):
        heads, group = key.shape[1], query.shape[1] // key.shape[1]
        ours = self.entries.setdefault(module.layer_idx, [[] for _ in range(heads)])
        self.queries.setdefault(module.layer_idx, []).append(query[0, :, 0])
        out = []
        for h in range(heads):
            ours[h].append((self.position, key[0, h, 0], value[0, h, 0]))
            held_keys = torch.stack([k for _, k, _ in ours[h]])
            held_values = torch.stack([v for _, _, v in ours[h]])
            for g in range(group):
                logits = held_keys @ query[0, h * group + g, 0] * query.shape[-1] ** -0.5
                out.append(logits.softmax(0) @ held_values)
        return torch.stack(out)[None, None], None

    def strike(self, budget, window, rule):
        for layer, heads in self.entries.items():
            recent = torch.stack(self.queries[layer][-window:], dim=1).double()  # [heads, w, D]
            group = recent.shape[0] // len(heads)
            for h, held in enumerate(heads):
                keys = [k.double().tolist() for _, k, _ in held]
                numbers = rule(keys, recent[h * group : (h + 1) * group].tolist(), window)
                stay = best(numbers[: len(held) - window], budget - window)
                heads[h] = [held[c] for c in stay] + held[-window:]


LEDGER: list[Ledger] = []
AttentionInterface.register("ledger", lambda *a, **k: LEDGER[0].attend(*a, **k))
AttentionMaskInterface.register("ledger", eager_mask)


def rkv_rule(lam=0.1, kernel=7, threshold=0.5, retain="last"):
    """Z of the tokens before the window, who alone share the attention of those within it."""

    def rule(keys, queries, window):
        scale = len(keys[0]) ** -0.5
        weight = pooled(importance(queries, keys[:-window], scale), kernel)
        repeated = repetition(keys, threshold, retain)
        return [lam * i - (1 - lam) * r for i, r in zip(weight, repeated, strict=False)]

    return rule


PEERS = {
    "attention": lambda keys, q, w: importance(q, keys[:-w], len(keys[0]) ** -0.5),
    "cosine": lambda keys, q, w: redundancy(keys),
    "crop_right": lambda keys, q, w: [-c for c in range(len(keys))],
    "evenly_spaced": lambda keys, q, w: spaced(len(keys) - w, 12 - w),
}


def spaced(older, budget):
    """One for the first token of each span of the tokens before the window."""
    first = {span[0] for span in spans(older, budget)}
    return [float(c in first) for c in range(older)]


@torch.no_grad()
def by_hand(family, prompt, new=NEW, rule=None, budget=12, buffer=6, window=3):
    """Greedy tokens after `prompt`, and the ledger."""
    model, ledger, written = bare(family), Ledger(), []
    model.set_attn_implementation("ledger")
    LEDGER[:] = [ledger]
    for position in range(len(prompt) + new - 1):
        token = prompt[position] if position < len(prompt) else written[-1]
        ledger.position = position
        where = torch.tensor([[position]])
        out = model(input_ids=torch.tensor([[token]]), position_ids=where, use_cache=False)
        if position >= len(prompt) - 1:
            if len(ledger.entries[0][0]) >= budget + buffer:
                ledger.strike(budget, window, rule or rkv_rule())
            written.append(int(out.logits[0, -1].argmax()))
    return written, ledger


def prompts(*lengths):
    """Random tokens, no special ones."""
    draw = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(4, len(VOCABULARY), (n,), generator=draw).tolist() for n in lengths]


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def endless(model):
    """A random model that never stops by itself."""
    model.generation_config.eos_token_id = None
    return model


def generate(model, rows, new=NEW, **options):
    """New tokens of each row, and what `generate` returned."""
    batch = padded(rows)
    out = endless(model).generate(
        **batch, max_new_tokens=new, do_sample=False, return_dict_in_generate=True, **options
    )
    return out.sequences[:, batch["input_ids"].shape[1] :].tolist(), out


# shorter than the window; compressed while decoding; full; beyond budget + buffer when read
ROWS = prompts(2, 7, 18, 40)


@pytest.mark.parametrize("family", [name for name in WHOLE if name != "qwen3"])  # it repeats itself
def test_a_padded_batch_writes_and_holds_what_the_ledger_says(family):
    model = bare(family)
    with compressed(model, **SMALL) as log:
        written, out = generate(model, ROWS)
    plain, _ = generate(bare(family), ROWS)
    for b, row in enumerate(ROWS):
        tokens, ledger = by_hand(family, row)
        assert written[b] == tokens != plain[b] and len(set(tokens)) > 5
        for layer, heads in ledger.entries.items():
            held = out.past_key_values.layers[layer]
            for h, entries in enumerate(heads):
                count = len(entries)
                assert [p for p, _, _ in entries] == sorted(p for p, _, _ in entries)
                for found, part in ((held.keys, 1), (held.values, 2)):
                    expected = torch.stack([entry[part] for entry in entries])
                    torch.testing.assert_close(found[b, h, -count:], expected, atol=1e-4, rtol=1e-3)
    assert log.uncompressed_columns == 40 + NEW - 1 and log.compressions > 4


@pytest.mark.parametrize(
    "settings",
    (
        {"lam": 0.9},
        {"kernel": 1, "lam": 0.9},
        {"threshold": 0.1},
        {"retain": "first"},
        {"budget": 10, "buffer": 1, "window": 5},
        {"budget": 9, "buffer": 11, "window": 8},
    ),
    ids=str,
)
def test_each_setting_does_what_the_ledger_says(settings):
    model, row = bare("qwen2"), prompts(11)[0]
    when = {**SMALL, **{k: v for k, v in settings.items() if k in SMALL}}
    rule = rkv_rule(**{k: v for k, v in settings.items() if k not in SMALL})
    with compressed(model, **{**SMALL, **settings}):
        written, _ = generate(model, [row])
    assert written[0] == by_hand("qwen2", row, rule=rule, **when)[0]


@pytest.mark.parametrize("name", PEERS)
def test_other_evictions_can_decode(name):
    model, rows = bare("llama"), prompts(9, 14)
    with compressed(model, name, **SMALL):
        written, _ = generate(model, rows)
    for tokens, row in zip(written, rows, strict=True):
        assert tokens == by_hand("llama", row, rule=PEERS[name])[0]


def test_what_a_row_writes_does_not_depend_on_its_mates(family):
    model = bare(family)
    with compressed(model, **SMALL):
        together, _ = generate(model, ROWS)
        assert together == [generate(model, [row])[0][0] for row in ROWS]


def test_a_budget_beyond_the_sequence_changes_no_bit(family):
    model = bare(family)
    options = {"output_logits": True}
    expected, plain = generate(model, ROWS, **options)
    with compressed(model, budget=200) as log:
        written, out = generate(model, ROWS, **options)
    assert written == expected and log.compressions == 0
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


def test_the_cache_stays_small_and_is_not_empty(family):
    model, sizes = bare(family), []

    def measure(module, inputs, output):
        sizes.append({layer.keys.shape[2] for layer in output.past_key_values.layers})

    model.register_forward_hook(measure)
    with compressed(model, **SMALL) as log:
        _, out = generate(model, prompts(5, 16), 60)
    assert log.uncompressed_columns == 16 + 59 and log.peak_columns == 18
    assert all(len(layers) == 1 for layers in sizes)  # every layer alike
    assert max(map(max, sizes)) == 17 and min(map(min, sizes)) == 12
    plain = generate(bare(family), prompts(5, 16), 60)[1].past_key_values
    small = caches.size_in_bytes(out.past_key_values)
    assert 0 < small <= caches.size_in_bytes(plain) * 18 / log.uncompressed_columns


def test_tokens_keep_their_positions_and_their_order():
    # in the first layer a key depends on its token and its position alone
    model, row = bare("llama"), prompts(20)[0]
    asked = []
    model.model.register_forward_pre_hook(
        lambda m, args, kwargs: asked.append(kwargs["position_ids"].tolist()), with_kwargs=True
    )
    with compressed(model, **SMALL):
        written, out = generate(model, [row])
    assert asked == [[list(range(20))], *([[20 + t]] for t in range(NEW - 1))]
    held = out.past_key_values.layers[0].keys[0]
    whole = bare("llama")(input_ids=torch.tensor([row + written[0][:-1]]))
    keys = whole.past_key_values.layers[0].keys[0]
    for h in range(held.shape[0]):
        distance = (held[h][:, None] - keys[h]).norm(dim=-1)
        places = distance.argmin(1).tolist()
        assert distance.min(1).values.max() < 1e-4
        assert places == sorted(set(places)) and places[-3:] == [41, 42, 43]
        assert places[0] < 30


def test_generation_can_go_on_from_its_cache(family):
    model = bare(family)
    with compressed(model, **SMALL):
        whole, _ = generate(model, ROWS)
        _, out = generate(model, ROWS, 10)
        mask = torch.cat((padded(ROWS)["attention_mask"], torch.ones(4, 10, dtype=torch.long)), 1)
        after = model.generate(
            out.sequences, attention_mask=mask, past_key_values=out.past_key_values,
            max_new_tokens=NEW - 10, do_sample=False,
        )  # fmt: skip
    assert after[:, 40:].tolist() == whole


def test_samples_of_one_prompt_are_rows():
    model = endless(bare("llama"))
    with compressed(model, **SMALL) as log:
        out = model.generate(
            **padded(prompts(6)), max_new_tokens=20, do_sample=True, num_return_sequences=3
        )
    assert out.shape == (3, 26) and log.compressions == 2


def hybrid():
    """Gemma-3: two layers with a window of 8 tokens, one that attends to everything."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        initializer_range=0.25, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def test_layers_with_a_sliding_window_are_left_alone():
    model = hybrid()
    plain, _ = generate(model, ROWS)
    with compressed(model, budget=200):
        assert generate(model, ROWS)[0] == plain
    with compressed(model, **SMALL) as log:
        written, out = generate(model, ROWS)
        assert written == [generate(model, [row])[0][0] for row in ROWS]
    assert written != plain and log.compressions
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers][::2] == [7, 7]
    assert out.past_key_values.layers[1].keys.shape[2] < 18


@pytest.mark.parametrize("method", ("cot", "kava"))
def test_a_reasoner_answers_with_a_small_cache(method, family):
    thinker = reasoner(family, method)
    endless(thinker.lm)
    questions = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11"]

    def answer(texts):
        thinker.tokenizer.eos_token = None
        return thinker.continue_from(thinker.think(texts), NEW).tolist()

    plain = answer(questions)
    with compressed(thinker.lm, budget=200):
        assert answer(questions) == plain
    with compressed(thinker.lm, **SMALL) as log:
        small = answer(questions)
        assert small == [answer([question])[0] for question in questions]
    assert small != plain and log.peak_columns <= 18 + 8


def test_full_layers_among_windows_and_soft_caps_are_compressed():
    thinker = reasoner("gemma2", "cot")
    endless(thinker.lm)
    questions = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11"]

    def answer(texts):
        thinker.tokenizer.eos_token = None
        return thinker.continue_from(thinker.think(texts), NEW).tolist()

    plain = answer(questions)
    with compressed(thinker.lm, budget=200):
        assert answer(questions) == plain
    with compressed(thinker.lm, **SMALL) as log:
        assert answer(questions) == [answer([question])[0] for question in questions]
    assert log.compressions and log.peak_columns <= 18 + 8


def test_a_model_whose_layers_all_have_windows_is_refused():
    with refused("inference.all-bounded", "MistralForCausalLM"), compressed(tied("mistral")):
        pass


def test_a_plain_backbone_asked_writes_what_generate_writes():
    thinker = reasoner("qwen2", "cot")
    row = thinker.encoder.question("w1 w2 w3 w4")
    with compressed(thinker.lm, **SMALL):
        expected = generate(thinker.lm, [row])[0]
        thinker.tokenizer.eos_token = None
        assert thinker.continue_from(thinker.think(["w1 w2 w3 w4"]), NEW).tolist() == expected


def test_a_long_question_waits_until_enough_tokens_have_observed():
    thinker = reasoner("llama", "cot")
    reasoning = thinker.think([words(30, 1)])  # all but the last token, which is the prompt
    with compressed(endless(thinker.lm), **SMALL) as log:
        thinker.tokenizer.eos_token = None
        thinker.continue_from(reasoning, 2)
        assert (log.peak_columns, log.compressions) == (32, 0)
        thinker.continue_from(reasoning, 3)
        assert (log.peak_columns, log.compressions) == (33, 1)


def test_a_model_wrapped_by_peft_is_compressed_inside():
    thinker = reasoner("llama", "cot", **lora())
    with compressed(thinker.backbone, **SMALL) as log:
        written, _ = generate(thinker.lm, ROWS)
    assert log.compressions and written != generate(thinker.lm, ROWS)[0]


def test_the_model_is_left_as_it_was():
    model = bare("llama")
    model.set_attn_implementation("eager")
    with pytest.raises(ZeroDivisionError), compressed(model, **SMALL):
        assert model.config._attn_implementation == IMPLEMENTATION_NAME and "forward" in vars(model)
        generate(model, ROWS)
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == "eager" and "forward" not in vars(model)
    with compressed(model, **SMALL):
        pass


def test_the_public_name_is_the_function():
    assert kava.compressed is compressed


BAD_PLANS = (
    ({"name": "rkv_decodin"}, "recipe.unknown-name", "rkv_decodin", "'rkv_decoding'?"),
    ({"name": "full"}, "inference.keeps-everything", "full", "256 tokens to 128"),
    ({"name": "mean_pooling"}, "inference.merges-tokens", "mean_pooling", "training only"),
    ({"bugdet": 3}, "reasoning.unknown-setting", "bugdet", "'budget'?"),
    ({"lamda": 0.3}, "reasoning.unknown-setting", "lamda", "'lambda'?"),
    ({"name": "cosine", "kernel": 3}, "reasoning.unknown-setting", "kernel", ": budget, buffer"),
    ({"budget": 8}, "inference.budget-within-window", "budget", "budget 8 "),
    ({"budget": 1.5}, "reasoning.bad-setting", "budget", "is 1.5; give a whole number, 2 or more"),
    ({"buffer": 0}, "reasoning.bad-setting", "buffer", "is 0;"),
    ({"window": True}, "reasoning.bad-setting", "window", "is True;"),
    (
        {"name": "attention", "lam": -1},
        "reasoning.bad-setting",
        "lambda",
        "is -1; give a number from 0 to 1",
    ),
    ({"kernel": 2}, "reasoning.bad-setting", "kernel", "is 2;"),
)


@pytest.mark.parametrize("settings,code,key,value", BAD_PLANS, ids=str)
def test_a_bad_plan_is_refused(settings, code, key, value):
    with refused(code, key) as caught:
        plan(**settings)
    assert value in str(caught.value)


def test_lambda_has_two_names():
    assert plan(lam=0.3) == plan(**{"lambda": 0.3}) != plan()


def test_models_that_cannot_are_refused():
    for none in (reasoner("llama", "kava"), "gpt2"):
        with refused("inference.not-a-model", type(none).__name__), compressed(none):
            pass
    small = dict(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                 num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    bounded = MistralForCausalLM(MistralConfig(**small, sliding_window=4))
    with refused("inference.all-bounded", "MistralForCausalLM"):
        compressed(bounded).__enter__()
    translator = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with refused("inference.other-attention", "T5ForConditionalGeneration"):
        compressed(translator).__enter__()
    model = bare("llama")
    with compressed(model), refused("inference.nested-blocks"), compressed(model):
        pass


def test_an_attention_that_cannot_be_observed_is_refused():
    model = bare("llama")
    with compressed(model, **SMALL), refused("inference.attention-unseen"):
        model.config._attn_implementation = "eager"
        generate(model, ROWS)


@pytest.mark.parametrize(
    "options,code,key",
    (
        ({"num_beams": 2}, "backbones.compressed-cache", None),
        ({"cache_implementation": "static"}, "backbones.cache-kind", "StaticCache"),
        ({"use_cache": False}, "inference.no-cache", "use_cache"),
        ({"past_key_values": DynamicCache()}, "inference.bad-mask", "attention_mask"),
    ),
    ids=str,
)
def test_calls_that_cannot_are_refused(options, code, key):
    model = bare("llama")
    with compressed(model, **SMALL), refused(code, key):
        if "past_key_values" in options:
            mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
            model(torch.tensor([[5, 6, 7]]), attention_mask=mask, **options)
        else:
            generate(model, prompts(20), 12, **options)


def test_a_cache_of_another_block_is_refused():
    model = bare("llama")
    with compressed(model, **SMALL):
        _, out = generate(model, ROWS)
    with compressed(model, **SMALL), refused("backbones.cache-layers", "ShrinkingLayer"):
        model(torch.tensor([[5]]).expand(4, 1), past_key_values=out.past_key_values)


def test_without_a_cache_given_one_is_made():
    model = bare("gpt2")
    with compressed(model, **SMALL) as log:
        out = model(torch.tensor(prompts(25)))
    assert log.peak_columns == log.uncompressed_columns == 25
    assert out.past_key_values.layers[0].keys.shape[2] == 12
