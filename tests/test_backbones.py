"""What families of backbones differ in: windows, soft caps, scaled embeddings, vocabularies, names.

That training, latents, padding, decoding and checkpoints hold for each of them is in the files
that test these things, by the fixture `family`.
"""

import copy
import json
import math
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import generate, run, to_textbook, token_embeds
from refusals import refused
from rich.console import Console
from test_step import assert_equals_reference
from tiny import (
    FAMILIES,
    VOCABULARY,
    WINDOW,
    bare,
    lora,
    reasoner,
    recipe,
    tokenizer,
    wrap,
)
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import kava
from kava.backbones import attention, cache, compatibility, loading, masks, rope, structure
from kava.backbones import lora as adapters
from kava.backbones.masked_cache import MaskedCache
from kava.backbones.tiny import tiny_backbone
from kava.errors import KavaError
from kava.inspect.decoded import decode_latents
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import Architecture
from kava.training.smoke import family as smoke_family
from kava.training.smoke import smoke_run

QUESTIONS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12 w13 w14"]
WINDOWED = {"qwen2": {None, WINDOW}, "mistral": {WINDOW}, "gemma2": {None, WINDOW}}
WINDOWED |= {"gemma3_text": {None, WINDOW}}


def test_no_model_class_is_named_in_the_package():
    named = re.compile(r"\b(?!Auto|PreTrained|Generation|Lora)[A-Z]\w*(?:ForCausalLM|Config)\b")
    allowed = {"ConfigDict", "GgufConfig", "GSMSymbolicDatasetConfig"}  # of files, of problems
    package = Path(kava.__file__).parent
    for file in package.rglob("*.py"):
        if file.parent == package / "vllm":  # its engine has a class for each family
            continue
        found = set(named.findall(file.read_text(encoding="utf-8"))) - allowed
        assert not found, f"{file.name}: {found}"


# -- sliding windows -----------------------------------------------------------------------------


def test_windows_are_read_off_the_model(family):
    found = structure.windows(bare(family))
    found = set(found.values()) if isinstance(found, dict) else {found}
    assert found == WINDOWED.get(family, {None})


@torch.no_grad()
def states(thinker, mask):
    """Last states of columns that are real where `mask` [B, S] says so, and the cache."""
    ids = torch.randint(12, len(VOCABULARY), mask.shape)
    start = MaskedCache.empty(len(mask), thinker.device)
    output, context = thinker.extend(start, thinker.embed(ids), mask)
    return ids, output.last_hidden_state, context


def holes(rows=3, columns=20):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(5)) < 0.7
    mask[0] = True
    return mask


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_that_is_ignored_would_be_seen(family, monkeypatch):
    thinker, mask = reasoner(family), torch.ones(1, 3 * WINDOW, dtype=torch.bool)
    torch.manual_seed(3)
    _, honest, _ = states(thinker, mask)
    monkeypatch.setattr(
        masks, "within_window", lambda q, k, w: torch.ones_like(q[:, :, None] - k[:, None] < w)
    )
    torch.manual_seed(3)
    _, blind, _ = states(thinker, mask)
    gap = (honest - blind).abs().amax(-1)[0]
    assert gap[:WINDOW].max() < 1e-5 and gap[WINDOW:].max() > 0.1


def test_holes_take_no_room_in_a_window(family):
    thinker, mask = reasoner(family), holes()
    ids, found, _ = states(thinker, mask)
    for row in range(len(mask)):
        with torch.no_grad():
            alone = run(thinker, token_embeds(thinker, ids[row, mask[row]].tolist())).last
        torch.testing.assert_close(found[row, mask[row]], alone, atol=1e-4, rtol=1e-4)


def test_a_thought_with_holes_is_answered_as_one_without(family):
    thinker, mask = reasoner(family, "cot"), holes()
    ids, _, context = states(thinker, mask)
    prompt = torch.tensor(thinker.encoder.prompt).expand(len(mask), -1)
    found = thinker.continue_from(ReasoningResult(context, prompt, "", 0, 1), 6)
    slow = to_textbook(copy.deepcopy(thinker))
    for row in range(len(mask)):
        before = [*ids[row, mask[row]].tolist(), *thinker.encoder.prompt]
        with torch.no_grad():
            expected = generate(slow, token_embeds(slow, before), 6, 2)
        assert found[row].tolist()[: len(expected)] == expected


def test_a_packed_thought_holds_the_real_columns_in_order(family):
    thinker, mask = reasoner(family), holes()
    _, _, context = states(thinker, mask)
    packed = context.pack()
    assert packed.columns == mask.sum(1).max() and torch.equal(
        packed.next_position, context.next_position
    )
    pairs = cache.key_values(context.past_key_values), cache.key_values(packed.past_key_values)
    for before, after in zip(*pairs, strict=True):
        for one, other in zip(before, after, strict=True):
            for row in range(len(mask)):
                kept = other[row][:, packed.attention_mask[row]]
                assert torch.equal(one[row][:, mask[row]], kept)
                assert packed.attention_mask[row, -kept.shape[1] :].all()  # pads on the left
    nothing = MaskedCache.empty(2, thinker.device)
    assert nothing.pack().columns == 0


# -- soft caps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows,columns,masked", ((7, 7, False), (5, 9, True), (1, 4, False)))
def test_capped_attention_in_blocks_is_the_textbooks(rows, columns, masked, monkeypatch):
    monkeypatch.setattr(attention, "ROWS", 3)
    query = (3 * torch.randn(2, 4, rows, 8)).requires_grad_()
    key, value = (torch.randn(2, 2, columns, 8, requires_grad=True) for _ in range(2))
    causal = torch.ones(rows, columns).tril(columns - rows).bool().expand(2, 1, -1, -1)
    mask = causal & (torch.rand(2, 1, rows, columns) < 0.6) if masked else causal
    mask = mask | torch.eye(rows, columns).bool() if masked else mask
    given = masks.to_additive(mask, torch.float32)[..., :columns] if masked else None
    found = attention.capped_attention(query, key, value, given, softcap=1.5, scaling=0.7)
    wide = [t.repeat_interleave(2, dim=1) for t in (key, value)]
    logits = 1.5 * torch.tanh(query @ wide[0].transpose(2, 3) * 0.7 / 1.5)
    weights = logits.masked_fill(~mask, -math.inf).softmax(-1)
    expected = (weights @ wide[1]).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (query, key, value)),
        torch.autograd.grad(expected.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_capped_attention_keeps_no_weights_and_makes_one_block_at_a_time(monkeypatch):
    monkeypatch.setattr(attention, "ROWS", 3)
    honest, made, saved = attention.grouped_logits, [], []

    def spy(*args):
        made.append(honest(*args))
        return made[-1]

    def keep(tensor):
        saved.append(tensor)
        return tensor

    monkeypatch.setattr(attention, "grouped_logits", spy)
    query, key, value = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = attention.capped_attention(query, key, value, None, softcap=1.0)
    assert [logits.shape[-2] for logits in made] == [3, 3, 2]
    assert saved and not any(t.dim() == 5 or (t.shape[-1] == 8 and t.shape[1] > 1) for t in saved)
    found.sum().backward()
    assert len(made) == 6  # made again, backwards


# -- embeddings ----------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_given_are_those_that_ids_give(family):
    model, ids = bare(family), torch.arange(5, 25)[None]
    given = model(inputs_embeds=structure.embeddings(model)[ids]).logits
    torch.testing.assert_close(given, model(input_ids=ids).logits)


def test_new_rows_and_latents_are_on_the_scale_that_layers_get(family):
    """Not the stored weight's: Gemma multiplies by the root of d in its table."""
    thinker = reasoner(family)
    usual = thinker.embed(torch.arange(len(VOCABULARY))).detach().square().mean().sqrt()
    for row in thinker.special_tokens.values():
        assert 0.3 < row.detach().square().mean().sqrt() / usual < 1
    latents = thinker.project(torch.randn(2, 3, 32)).detach()
    torch.testing.assert_close(latents.square().mean().sqrt(), usual, rtol=0.01, atol=0)


# -- vocabularies --------------------------------------------------------------------------------

EXTRA = 9


def large(family="qwen2", method="kava", loud=0.0, **changes):
    """More embedding rows than tokens; the head scores the unused ones by `loud` higher."""
    model = bare(family, vocab_size=len(VOCABULARY) + EXTRA, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(VOCABULARY) + EXTRA))
        model.lm_head.bias[len(VOCABULARY) :] = loud
    return wrap(model, method, **changes)


@pytest.mark.parametrize("family", ("qwen2", "gpt2"))
def test_a_step_with_a_vocabulary_larger_than_the_tokenizer(family):
    thinker = large(family)
    ids = thinker.tokenizer.convert_tokens_to_ids(["<bot>", "<latent>", "<eot>"])
    assert max(ids) < thinker.lm.config.vocab_size  # they fall on unused rows, which stay unused
    assert_equals_reference(thinker)
    table = thinker.lm.get_input_embeddings().weight.grad
    assert table[: len(VOCABULARY)].any() and not table[len(VOCABULARY) :].any()


@pytest.mark.parametrize("method", ("cot", "kava"))
def test_no_id_without_text_is_ever_generated(method):
    quiet, loud = large(method=method), large(method=method, loud=1e3)
    reasoning = loud.think(QUESTIONS)
    found = loud.continue_from(reasoning, 5)
    assert torch.equal(found, quiet.continue_from(quiet.think(QUESTIONS), 5))
    mask, loud.unreadable_ids = loud.unreadable_ids, None
    assert found.max() < len(VOCABULARY) == int(mask.nonzero()[0])
    assert loud.continue_from(reasoning, 5).min() >= len(VOCABULARY)  # else the test would be empty
    loud.unreadable_ids = mask
    if method == "kava":
        words = [word for latent in decode_latents(loud, QUESTIONS[0]) for word, _ in latent]
        assert set(words) <= set(VOCABULARY)
        assert words == [w for latent in decode_latents(quiet, QUESTIONS[0]) for w, _ in latent]


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused():
    with refused("backbones.other-tokenizer", "w19") as caught:
        wrap(bare("llama", vocab_size=50))
    assert "'w19' has id 54, but this llama has 50 embedding rows" in str(caught.value)


def test_a_special_token_without_a_row_is_no_error_since_text_never_has_it():
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})  # as Gemma-3 1B has
    thinker = wrap(bare("gemma3_text"), words=words)
    assert max(thinker.encoder.question("w1 <image> w2")) < len(VOCABULARY)
    thinker.continue_from(thinker.think(["w1 <image> w2"]), 2)


@pytest.mark.parametrize("method", ("cot", "no_cot", "kava"))
def test_without_a_bos(method):
    words = tokenizer()
    words.bos_token = None
    thinker = wrap(bare("qwen2", bos_token_id=None), method, words=words)
    assert thinker.encoder.question("w4") == [VOCABULARY.index("w4")]
    assert_equals_reference(thinker)
    together = thinker.continue_from(thinker.think(QUESTIONS), 5)
    for i, question in enumerate(QUESTIONS):
        alone = thinker.continue_from(thinker.think([question]), 5)[0]
        assert together[i].tolist()[: len(alone)] == alone.tolist()


# -- decoding ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A folder with a backbone and its tokenizer, and a reasoner of them."""
    bare("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path, reasoner("llama", "cot")


def rewrite(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_greedy_stays_greedy_whatever_the_backbones_files_ask_for(tmp_path):
    thinker = reasoner("llama", "cot")
    expected = thinker.continue_from(thinker.think(QUESTIONS), 12)
    model = bare("llama")
    model.generation_config.update(
        repetition_penalty=3.0,
        do_sample=True,
        temperature=5.0,
        top_k=3,
        cache_implementation="static",
    )
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    found = Reasoner.build(recipe("cot", backbone=str(tmp_path))).eval()
    assert torch.equal(found.continue_from(found.think(QUESTIONS), 12), expected)


@pytest.mark.parametrize(
    "setting",
    [{"use_cache": False}, {"output_hidden_states": True}, {"output_attentions": True},
     {"return_dict": False}],
    ids=str,
)  # fmt: skip
def test_what_a_config_asks_a_model_to_return_changes_no_answer(saved, setting):
    folder, thinker = saved
    expected = thinker.continue_from(thinker.think(QUESTIONS), 12)
    rewrite(folder, **setting)
    found = Reasoner.build(recipe("cot", backbone=str(folder))).eval()
    assert torch.equal(found.continue_from(found.think(QUESTIONS), 12), expected)


def test_a_broken_tokenizer_is_refused(tmp_path):
    tiny_backbone("llama", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with refused("backbones.no-tokenizer", str(tmp_path)) as caught:
        Reasoner.build(recipe("kava", backbone=str(tmp_path)))
    assert "added_tokens" in str(caught.value)  # what the tokenizers library says


@pytest.mark.parametrize("family", ("llama", "qwen2", "gemma2"))
def test_a_backbone_without_a_tokenizer_is_refused(family, tmp_path):
    """transformers makes some that know no text: Qwen's gives nothing, Gemma's one token."""
    bare(family).save_pretrained(tmp_path)
    with refused("backbones.no-tokenizer", str(tmp_path)):
        Reasoner.build(recipe("kava", backbone=str(tmp_path)))


# -- LoRA ----------------------------------------------------------------------------------------


@pytest.fixture
def adapted(family):
    """An adapter on the family's own targets that already does something."""
    thinker = reasoner(family, **lora())
    with torch.no_grad():
        for name, weight in thinker.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    return thinker


def test_an_adapter_on_the_familys_own_projections(adapted):
    names = {n.split(".lora_A")[0] for n, _ in adapted.named_parameters() if "lora_A" in n}
    parts = {n.rpartition(".")[2] for n in names}
    fused = {"gpt2": {"c_attn", "c_proj"}, "phi3": {"qkv_proj", "o_proj"}}
    expected = fused.get(adapted.lm.config.model_type, {"q_proj", "k_proj", "v_proj", "o_proj"})
    assert parts == expected and len(names) == 2 * len(expected)
    assert all("attn" in n for n in names)
    assert_equals_reference(adapted)


def test_the_targets_that_were_taken_are_saved(adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    written = load_resolved(tmp_path / "recipe.yaml").lora.targets
    family = adapted.lm.config.model_type
    assert written == adapters.TARGETS.get(family, adapters.USUAL_TARGETS)


@pytest.mark.parametrize(
    "family,targets,wrong,known",
    (
        ("llama", ["q_proj", "c_attn"], "c_attn", "down_proj, gate_proj, k_proj, o_proj"),
        ("gpt2", ["q_proj"], "q_proj", "c_attn, c_fc, c_proj"),
        ("phi3", ["o_proj", "v_proj"], "v_proj", "down_proj, gate_up_proj, o_proj, qkv_proj"),
        ("llama", ["lm_head"], "lm_head", "down_proj"),
    ),
)
def test_a_target_that_is_no_layer_is_named_with_those_that_are(family, targets, wrong, known):
    with refused("backbones.unknown-target", wrong) as caught:
        reasoner(family, **lora(targets=targets))
    message = str(caught.value)
    assert f"'{wrong}'" in message and known in message and "\n" not in message


def test_all_linear_layers(family):
    thinker = reasoner(family, **lora(targets="all-linear"))
    assert any("mlp" in n and "lora_A" in n for n, _ in thinker.named_parameters())


# -- refused -------------------------------------------------------------------------------------

SHAPE = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.25,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize(
    "family,code,reason",
    (
        ("mamba", "unknown-layer-kind", "'linear_attention'"),
        ("falcon_mamba", "unknown-layer-kind", "'linear_attention'"),
        ("jamba", "unknown-layer-kind", "'linear_attention'"),
        # with transformers 5.17 it gives no cache back
        ("recurrent_gemma", "unknown-layer-kind|no-attention|no-continuation", ""),
        ("llama4_text", "unknown-layer-kind", "'chunked_attention'"),
        ("mpt", "no-attention", "layer 0"),  # positions as a bias, not as position_ids
        ("bloom", "no-attention|no-continuation", ""),
        ("rwkv", "no-attention|no-continuation", ""),
        ("gpt_oss", "other-logits", ""),  # a sink in each softmax
        ("cohere", "other-head", ""),  # logits are scaled
    ),
)
def test_a_backbone_that_cannot_think_here_is_refused_by_name(family, code, reason, dtype):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with pytest.raises(KavaError) as caught:
        loading.prepare(model)
    message = str(caught.value)
    assert re.fullmatch(rf"backbones\.({code})", caught.value.code), message
    assert caught.value.key in (family, reason.strip("'"), "linear_attention")
    assert f"type {family}" in message and reason in message and "\n" not in message


@pytest.mark.parametrize("spoilt", (math.nan, math.inf))
def test_weights_that_give_no_finite_logits_are_not_taken_for_a_strange_head(spoilt, tmp_path):
    model = bare("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(spoilt)
    model.save_pretrained(tmp_path)
    with refused("backbones.not-finite", "llama") as caught:
        loading.load_model(tmp_path, torch.float32)
    assert f"type llama in {tmp_path}: " in str(caught.value)


@pytest.mark.parametrize(
    "family,code",
    (
        ("t5", "backbones.encoder-decoder"), ("bart", "backbones.encoder-decoder"),
        ("gemma3", "backbones.more-than-text"),
    ),
)  # fmt: skip
def test_what_is_no_plain_language_model_is_refused_before_its_weights_are_read(
    tmp_path, family, code
):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with refused(code, family):
        loading.load_model(tmp_path, torch.float32)


def test_a_quantised_backbone_is_refused_by_name(saved):
    folder, _ = saved
    rewrite(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with refused("backbones.quantised", "gptq"):
        loading.load_model(folder, torch.float32)


@pytest.mark.parametrize(
    ("settings", "code", "value"),
    [
        ({"hidden_size": 33}, "backbones.unusable", "(33)"),
        ({"hidden_act": "zzz"}, "backbones.unusable", "KeyError: 'zzz'"),
    ],
)
def test_files_that_transformers_fails_at_are_one_line(saved, settings, code, value):
    folder, _ = saved
    rewrite(folder, **settings)
    with refused(code, str(folder)) as caught:
        Reasoner.from_backbone(str(folder))
    assert value in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_of_peft_is_no_backbone(saved):
    folder, _ = saved  # which holds the whole model too: transformers would put the adapter on it
    get_peft_model(bare("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        folder
    )
    with refused("backbones.is-adapter", str(folder)):
        Reasoner.from_backbone(str(folder))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_keys_are_not_turned_back_where_another_rotation_made_them(dtype):
    shape = {**SHAPE, "head_dim": 8, "attention_bias": False}
    torch.manual_seed(0)
    config = AutoConfig.for_model("glm4", **shape)  # turns neighbouring features, not halves
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    wrap(model)
    with refused("backbones.unknown-rotation", "glm4") as caught:
        wrap(model, kv={"weight": 1.0, "keys": "pre_rope"})
    assert "pre_rope" in str(caught.value)


def test_large_keys_in_low_precision_are_turned_back():
    # As Qwen2.5's: a bias makes some features of its keys far larger than others.
    model = bare("qwen2").to(torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.zero_()[::5] = 170
    rope.check(model, "kv.keys: pre_rope", "use post_rope")


def massive(seed=0, dtype=torch.bfloat16):
    """Its first layer makes states that are 10,000 times as large, in a direction of no token.

    That is what published models do: rounding what is large spoils the rest in half precision.
    """
    model = bare("qwen2", seed)
    direction = torch.ones(32) / 32**0.5
    head = model.lm_head.weight
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.add_(1e4 * torch.outer(direction, direction))
        head.sub_(torch.outer(head @ direction, direction))
    return model.to(dtype)


@torch.no_grad()
def gap_of_its_own_attentions(model):
    found = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found.append(model(torch.arange(1, compatibility.TOKENS + 1)[None]).logits.float())
    return ((found[0] - found[1]).square().mean().sqrt() / found[0].std()).item()


def test_massive_activations_in_low_precision_pass_the_check():
    """As SmolLM2-135M's, whose own attentions differ by 0.97 of the spread of its logits."""
    assert gap_of_its_own_attentions(massive(dtype=torch.float32)) < 1e-3
    assert max(gap_of_its_own_attentions(massive(seed)) for seed in range(4)) > 0.2
    for seed in range(4):
        compatibility.check(massive(seed))


def ignore_positions(model, monkeypatch):
    honest = model.base_model.forward
    monkeypatch.setattr(
        model.base_model, "forward", lambda *a, position_ids=None, **k: honest(*a, **k)
    )


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_model_that_ignores_positions_is_refused(dtype, monkeypatch):
    model = bare("gpt2").to(dtype)
    ignore_positions(model, monkeypatch)
    with refused("backbones.other-logits", "gpt2"):
        loading.prepare(model)


def test_a_model_with_massive_activations_that_ignores_positions_is_refused(monkeypatch):
    model = massive()
    ignore_positions(model, monkeypatch)
    with refused("backbones.other-logits", "qwen2"):
        compatibility.check(model)


@pytest.mark.parametrize("wrong", (False, True))
def test_the_check_leaves_weights_in_low_precision_as_they_were(wrong, monkeypatch):
    model = bare("llama", num_hidden_layers=3).to(torch.bfloat16)
    if wrong:
        ignore_positions(model, monkeypatch)
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in state_of(model)}
    wide = []

    def count(*_):
        layers = model.base_model.layers
        wide.append([next(one.parameters()).dtype == torch.float32 for one in layers])

    hooks = [layer.register_forward_pre_hook(count) for layer in model.base_model.layers]
    with refused("backbones.other-logits") if wrong else nullcontext():
        compatibility.check(model)
    for hook in hooks:
        hook.remove()
    assert max(map(sum, wide)) == 1  # a layer at a time
    for name, weight in state_of(model):
        place, value = before[name]
        assert weight.data_ptr() == place and torch.equal(weight, value), name
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in model.modules())


def state_of(model):
    return [*model.named_parameters(), *model.named_buffers()]


def test_logits_that_half_precision_cannot_hold_are_refused_though_fp32_can():
    model = bare("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5 / model.lm_head.weight.abs().max() * 0.6)
    compatibility.check(model)
    with refused("backbones.not-finite"):
        compatibility.check(model.half())


def test_a_layer_whose_window_is_not_the_configurations_is_refused():
    model = bare("gemma2")
    model.base_model.layers[0].self_attn.sliding_window = 5
    with refused("backbones.other-window", "gemma2") as caught:
        loading.prepare(model)
    for value in ("layer 0 ", "of 5, ", f"says {WINDOW}"):
        assert value in str(caught.value)


def test_the_check_leaves_a_model_in_training_as_it_was():
    model = bare("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).train()  # dropout off while it looks
    assert loading.prepare(model).training
    assert model.config._attn_implementation == attention.IMPLEMENTATION_NAME


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_low_precision_passes_the_check(family, dtype):
    model = bare(family).to(dtype)
    compatibility.check(model)


# -- made from nothing ---------------------------------------------------------------------------


def test_smoke_trains_every_family(family, tmp_path):
    small = [f"family={family}", "num_latents=4", "num_iterations=1", "lora.r=2"]
    resolved = load_resolved("recipes/llama1b_aug/kava.yaml", small)
    run = tmp_path / "run"
    smoke_run(resolved, run, Console(quiet=True))
    loaded = Reasoner.from_pretrained(run, backbone=str(run / "backbone"))
    assert loaded.lm.config.model_type == family
    assert len(loaded.continue_from(loaded.think(["How many?"]), 2)) == 1


def test_the_family_of_a_shipped_backbone_is_read_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = recipe("kava", backbone="checkpoints/quickstart/backbone")
    assert shipped.family is None and smoke_family(shipped) == "llama"
    with refused("recipe.missing-key", "family"):
        smoke_family(recipe("kava", backbone="owner/name"))


@pytest.mark.parametrize(
    "family,code,key",
    (
        ("mamba", "backbones.unknown-layer-kind", "linear_attention"),
        ("nonsense", "backbones.unknown-family", "nonsense"),
        ("falcon", "backbones.no-tiny", "falcon"),
    ),
)
def test_smoke_names_the_family_that_it_cannot_have(family, code, key, tmp_path):
    with refused(code, key) as caught:
        tiny_backbone(family, tmp_path)
    assert family in str(caught.value)


ARCHITECTURE = {
    "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "tie_embeddings": False, "rope_theta": 5000.0, "initializer_range": 0.1,
}  # fmt: skip


def made(**changes):
    from kava.training.pretrain import new_model

    return new_model(Architecture(**ARCHITECTURE | changes), tokenizer())


def test_a_backbone_from_nothing_is_a_llama_unless_said_otherwise():
    torch.manual_seed(3)
    found = made()
    torch.manual_seed(3)
    expected = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            rope_theta=5000.0, initializer_range=0.1, tie_word_embeddings=False,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.config.rope_parameters == expected.config.rope_parameters


@pytest.mark.parametrize("family", ("qwen3", "gemma2", "mistral"))
def test_a_backbone_from_nothing_of_another_family(family):
    model = loading.prepare(made(family=family))
    assert model.config.model_type == family
    assert model.base_model.layers[0].self_attn.q_proj.weight.shape == (32, 32)


@pytest.mark.parametrize(
    "family,code,key,value",
    (
        ("gpt2", "training.family-lacks", "intermediate_size", ", num_key_value_heads"),
        ("nonsense", "backbones.unknown-family", "nonsense", "'nonsense'"),
    ),
)
def test_a_family_that_has_not_this_shape_is_named(family, code, key, value):
    with refused(code, key) as caught:
        made(family=family)
    assert value in str(caught.value)
    assert str(caught.value).startswith("architecture.family: ")


def test_a_fingerprint_is_of_a_sample():
    """What `fingerprint` and docs/troubleshooting.md say it is not good for."""
    layer = torch.nn.Linear(300, 10)
    before = loading.fingerprint(layer)
    with torch.no_grad():
        layer.weight.flatten()[256:] += 1
    assert loading.fingerprint(layer) == before and "no proof" in loading.fingerprint.__doc__
    with torch.no_grad():
        layer.weight.flatten()[255] += 1
    assert loading.fingerprint(layer) != before
