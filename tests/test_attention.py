"""The answer-to-reasoning block against a second model that runs eager attention in full."""

import itertools
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny import HEADS, KV_HEADS, bare, batch, example, reasoner, wrap
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kava.backbones import attention, loading, masks
from kava.backbones.attention import (
    answer_attention,
    grouped_logits,
    masked_softmax,
    record_queries,
)
from kava.reasoning.methods import prefill_question, teacher_forward
from kava.reasoning.methods._kv import visible_steps

EXAMPLES = [example(4, 6), example(9, 3, 1, "1 2 3"), example(1, 1, 2), example(6, 0, 3)]


@torch.no_grad()
def recorded(thinker, data):
    return teacher_forward(thinker, prefill_question(thinker, data), data, queries="answer")


@torch.no_grad()
def eager_block(family, row, steps, answer):
    """Weights of rows A and columns C over C alone, [layers, heads, A, C], of one bare row."""
    model = bare(family)
    model.set_attn_implementation("eager")
    ids = torch.tensor([row.question + row.steps + row.answer])
    weights = torch.stack(model(input_ids=ids, output_attentions=True).attentions)[:, 0]
    start = len(row.question)
    block = weights[:, :, start + steps :][:, :, :answer, start : start + steps]
    return (block / block.sum(-1, keepdim=True)).nan_to_num(0)  # a window may hide all steps


def test_each_query_head_matches_eager_attention_over_the_steps(family):
    thinker = reasoner(family)
    data = batch(thinker, EXAMPLES)
    teacher = recorded(thinker, data)
    record = teacher.queries
    assert len(record.queries) == len(teacher.steps) == 2
    for layer, (keys, _) in enumerate(teacher.steps):
        scaling, softcap = record.scaling[layer], record.softcap[layer]
        logits = grouped_logits(record.queries[layer], keys, scaling, softcap)
        seen = visible_steps(data, data["steps_mask"], record.window[layer])
        seen = seen[:, None] if seen.dim() == 2 else seen  # [B, A or 1, C]
        weights = masked_softmax(logits, seen[:, None, None]).flatten(1, 2)
        for i, one in enumerate(EXAMPLES):
            row = thinker.encoder.row(one)
            steps, answer = len(row.steps), len(row.answer)
            assert not weights[i, :, :, steps:].any()
            expected = eager_block(family, row, steps, answer)[layer]
            torch.testing.assert_close(
                weights[i, :, :answer, :steps], expected, atol=1e-5, rtol=1e-4
            )


def test_a_group_is_its_largest_logit_before_the_softmax():
    # one row, one key/value head, two query heads, one answer token, two steps, D = 1
    queries = torch.tensor([[[[2.0]], [[-1.0]]]])
    keys = torch.tensor([[[[3.0], [-4.0]]]])
    # logits: head 0 (6, -8), head 1 (-3, 4); the larger of each: (6, 4)
    expected = torch.softmax(torch.tensor([6.0, 4.0]) * 0.5, -1)
    found = answer_attention(queries, keys, torch.ones(1, 2, dtype=torch.bool), 0.5)
    torch.testing.assert_close(found[0, 0, 0], expected)


def test_query_heads_follow_the_key_head_they_share():
    # query head 2 * h + g belongs to key/value head h: as repeat_interleave, not as repeat
    queries = torch.arange(1.0, 5).reshape(1, 4, 1, 1)
    keys = torch.tensor([10.0, 100.0]).reshape(1, 2, 1, 1)
    found = grouped_logits(queries, keys, 1.0).flatten().tolist()
    assert found == [10, 20, 300, 400]


def test_rows_without_steps_and_pads_get_no_weight():
    mask = torch.tensor([[True, False], [False, False]])
    found = answer_attention(torch.randn(2, 4, 3, 8), torch.randn(2, 2, 2, 8), mask, 1.0)
    assert torch.equal(found[0, ..., 0], torch.ones(2, 3))
    assert not found[0, ..., 1].any() and not found[1].any()
    assert found.isfinite().all()


def test_recording_ends_with_its_block_and_holds_no_gradient(family):
    thinker = reasoner(family)
    data = batch(thinker, EXAMPLES)
    with record_queries(slice(-2, None)) as record:
        prefill_question(thinker, data)
    inside = {layer: q.clone() for layer, q in record.queries.items()}
    prefill_question(thinker, {k: v[:1] for k, v in data.items()})
    heads = HEADS, data["question"].shape[0]
    for layer, queries in record.queries.items():
        assert torch.equal(queries, inside[layer]) and not queries.requires_grad
        assert (queries.shape[1], queries.shape[0], queries.shape[2]) == (*heads, 2)


def attended(query, key, value, mask, scaling):
    """By loops: each query of each head, over the keys that it sees, of its group's head."""
    group = query.shape[1] // key.shape[1]
    rows = []
    for b, h, i in itertools.product(*map(range, query.shape[:3])):
        seen = mask[b, 0, i]
        keys, values = key[b, h // group][seen], value[b, h // group][seen]
        weights = (keys @ query[b, h, i] * (scaling or query.shape[3] ** -0.5)).softmax(0)
        rows.append(weights @ values)
    return torch.stack(rows).view_as(query).transpose(1, 2)


@pytest.mark.parametrize("way", (nullcontext, attention.allocate_as_on_gpu), ids=("cpu", "gpu"))
@pytest.mark.parametrize("scaling", (None, 0.3))
@pytest.mark.parametrize("queries,group", [(1, 1), (1, 3), (4, 1), (4, 3), (40, 2)])
def test_masked_attention_is_that_by_loops(queries, group, scaling, way):
    """Outputs and gradients; 40 queries are more than are made rows of one head."""
    torch.manual_seed(0)
    heads, size = 2, 4
    given = [torch.randn(2, h, n, size) for h, n in (
        (heads * group, queries), (heads, queries + 3), (heads, queries + 3)
    )]  # fmt: skip
    mask = torch.ones(2, 1, queries, queries + 3, dtype=torch.bool).tril(3)
    mask[1, :, :, 0] = False  # a pad
    expected = [each.clone().requires_grad_() for each in given]
    found = [each.clone().requires_grad_() for each in given]
    slow = attended(*expected, mask, scaling)
    with way():
        fast, _ = attention._sdpa(SimpleNamespace(is_causal=True, num_key_value_groups=group),
                                  *found, mask, scaling=scaling)  # fmt: skip
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    for output in (slow, fast):
        (output * torch.arange(output.numel()).view_as(output) / output.numel()).sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", (nullcontext, attention.allocate_as_on_gpu), ids=("cpu", "gpu"))
def test_for_the_backward_pass_keys_and_values_are_kept_as_they_are(way):
    query, keys, values = (torch.randn(2, h, 5, 4, requires_grad=True) for h in (6, 2, 2))
    mask, kept = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril(), []
    with way(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda held: held):
        attention.masked_attention(query, keys, values, mask)
    assert {keys.data_ptr(), values.data_ptr()} <= {tensor.data_ptr() for tensor in kept}


def test_on_a_gpu_no_token_of_a_padded_batch_repeats_the_cache(monkeypatch):
    thinker, calls = reasoner("llama", "no_cot"), []

    def repeating(*args, **kwargs):
        calls.append(kwargs.get("attention_mask", args[4]))
        return theirs(*args, **kwargs)

    theirs = attention.sdpa_attention_forward
    monkeypatch.setattr(attention, "sdpa_attention_forward", repeating)
    questions = ["w1 w2 w3", "w4"]
    with attention.allocate_as_on_gpu():
        found = thinker.generate(questions, max_new_tokens=4)
    assert all(mask is None for mask in calls)
    assert found == thinker.generate(questions, max_new_tokens=4)
    assert any(mask is not None for mask in calls)


def test_nobody_records_where_nobody_reads():
    thinker, seen = reasoner("llama", "pccot"), []
    thinker.lm.register_forward_pre_hook(lambda *_: seen.append(attention._recorders))
    thinker.lm.base_model.register_forward_pre_hook(lambda *_: seen.append(attention._recorders))
    thinker(**batch(thinker, [example(4, 6), example(3, 2, 1)]))
    assert seen and not any(seen)


@pytest.mark.parametrize(("wanted", "kept"), [(None, False), ("0", False), ("1", True)])
def test_loading_a_backbone_excludes_cudnn_unless_it_is_wanted(wanted, kept, monkeypatch):
    switched = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    monkeypatch.delenv(attention.CUDNN, raising=False)
    if wanted is not None:
        monkeypatch.setenv(attention.CUDNN, wanted)
    loading.prepare(bare("llama"))
    assert switched == ([] if kept else [False])


def test_the_tiny_backbones_have_grouped_heads():
    teacher = recorded(reasoner("llama"), batch(reasoner("llama"), EXAMPLES))
    assert teacher.steps[0][0].shape[1] == KV_HEADS < HEADS


def test_eager_attention_never_runs(pair, monkeypatch):
    thinker = reasoner(*pair)  # the check of a new backbone does run it, on six tokens
    module = sys.modules[type(thinker.lm).__module__]

    def refuse(*args, **kwargs):
        raise AssertionError("eager attention ran")

    monkeypatch.setattr(module, "eager_attention_forward", refuse)
    with pytest.raises(AssertionError, match="eager attention ran"):  # the trap works
        model = bare(pair[0])
        model.set_attn_implementation("eager")
        model(input_ids=torch.ones(1, 3, dtype=torch.long))
    thinker(**batch(thinker, EXAMPLES))["loss"].backward()
    thinker.continue_from(thinker.think(["w1 w2", "w3"]), 3)
    assert thinker.lm.config._attn_implementation == "kava"


# -- masks ----------------------------------------------------------------------------------------


def by_boolean_masks(module, query, key, value, attention_mask, scaling=None, **settings):
    """With a boolean mask that each layer repeats for its groups; soft caps by hand."""
    if attention._recorders:
        attention._record(module, query, {"scaling": scaling, **settings})
    assert attention_mask.dtype == torch.bool
    groups, attend = query.shape[1] // key.shape[1], scaled_dot_product_attention
    if (cap := settings.get("softcap")) is not None:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = cap * torch.tanh(query @ key.transpose(2, 3) * scaling / cap)
        weights = logits.masked_fill(~attention_mask, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2), None
    if not attention._as_on_gpus:
        found = attend(query, key, value, attention_mask, scale=scaling, enable_gqa=True)
        return found.transpose(1, 2), None
    rows = query.unflatten(1, (-1, groups)).flatten(2, 3)
    found = attend(rows, key, value, attention_mask.repeat(1, 1, groups, 1), scale=scaling)
    return found.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3), None


def loss_and_gradients(thinker):
    thinker.zero_grad()
    loss = thinker(**batch(thinker, EXAMPLES))["loss"]
    loss.backward()
    named = thinker.named_parameters()
    return {"loss": loss, **{name: p.grad for name, p in named if p.grad is not None}}


@pytest.mark.parametrize("way", (nullcontext, attention.allocate_as_on_gpu), ids=("cpu", "gpu"))
def test_losses_and_gradients_are_those_of_boolean_masks(family, way, monkeypatch):
    thinker = reasoner(family)
    with way():
        found = loss_and_gradients(thinker)
    with monkeypatch.context() as patched, way():
        patched.setattr(masks, "to_additive", lambda mask, *_: mask)
        patched.setitem(ALL_ATTENTION_FUNCTIONS, "kava", by_boolean_masks)
        expected = loss_and_gradients(thinker)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, wanted in expected.items():
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-6 * max(scale, 1))


@pytest.mark.parametrize("width", (5, 8, 235))
@pytest.mark.parametrize("copies", (1, 3))
def test_an_additive_mask_is_0_or_no_weight_and_its_rows_are_aligned(width, copies):
    allowed = torch.rand(2, 1, 4, width) > 0.5
    whole = masks.to_additive(allowed, torch.bfloat16, copies)
    assert whole.shape[3] > width and whole.shape[3] % 8 == 0
    found = whole[..., :width]  # as attention takes it
    assert found.dtype == torch.bfloat16 and found.shape == (2, copies, 4, width)
    assert torch.equal(found == 0, allowed.expand_as(found))
    assert torch.equal(found == -torch.inf, ~allowed.expand_as(found))
    # what torch asks of a mask before it copies it for its memory-efficient kernel
    assert found.stride(3) == 1 and not any(stride % 8 for stride in found.stride()[:3])


@pytest.mark.parametrize("autocast", (False, True))
def test_layers_share_one_mask_in_the_dtype_of_their_attention(autocast, monkeypatch):
    """As on GPUs, where each layer would otherwise convert, pad and repeat its own."""
    calls, attend = [], attention.scaled_dot_product_attention

    def seen(query, key, value, mask, **settings):
        calls.append((mask.dtype, mask.data_ptr(), mask.stride()))
        return attend(query, key, value, mask, **settings)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", seen)
    thinker = wrap(bare("llama", num_hidden_layers=3))
    data = batch(thinker, EXAMPLES)
    calls.clear()
    with attention.allocate_as_on_gpu(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prefill_question(thinker, data)
    assert len(calls) == 3 and len(set(calls)) == 1
    ((dtype, _, strides),) = set(calls)
    assert dtype == (torch.bfloat16 if autocast else torch.float32)
    assert not any(stride % 8 for stride in strides[:3])
