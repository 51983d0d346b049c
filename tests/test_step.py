"""One training step equals the slow reference: every term, every gradient, however it is split."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from reference import needs_oracle, step, to_textbook
from tiny import FAMILIES, backbone_parameters, batch, example, lora, reasoner, stepped

from kava.reasoning import batching
from kava.reasoning.losses import cross_entropy, hidden_state, kv_cache
from kava.reasoning.losses.cross_entropy import labels_at_once
from kava.recipe import registry
from kava.training.arguments import arguments

EXAMPLES = [
    example(4, 9), example(9, 3, 1, "1 2 3"), example(2, 0, 2), stepped(6, (2, 4, 1), 3, "4 5"),
]  # fmt: skip

LOTUS = {
    "num_latents": 12, "num_iterations": 3, "latent_readout": {"weight": 0.6, "width": 4},
    "codi": {"weight": 0.0}, "kv": {"weight": 0.0},
}  # fmt: skip
CASES = {
    "cot": {"method": "cot"},
    "no_cot": {"method": "no_cot"},
    "pccot": {"method": "pccot", "codi": {"weight": 0.7, "loss": "smooth_l1"}},
    "pccot, one std, no projection": {
        "method": "pccot", "projection": "none", "teacher_ce_weight": 0.3,
        "codi": {"weight": 2.0, "loss": "mse", "layerwise_std": False},
    },
    "icot": {"method": "icot"},
    "coconut": {"method": "coconut", "num_latents": 4,
                "method_options": {"latents_per_stage": 2, "max_stage": 2}},
    "codi": {
        "method": "codi", "num_latents": 3, "codi": {"weight": 0.7, "include_embeddings": True},
    },
    "lotus": {"method": "lotus", **LOTUS},
    "lotus, its file for 1B": {
        "method": "lotus", **LOTUS, "method_options": {"readout_after": "own_loop"},
        "latent_readout": {"weight": 0.6, "width": 4, "target": "slot"},
    },
    "lotus with L_KV": {
        "method": "lotus", **LOTUS, "projection": "mlp",
        "kv": {"weight": 0.8, "supervise": "all", "keys": "pre_rope"},
    },
    "kava": {},
    "kava, everything that is off in the paper": {
        "latent_readout": {"weight": 0.4, "target": "next"}, "num_latents": 4,
        "codi": {"weight": 0.3, "include_embeddings": True},
        "kv": {"weight": 1.0, "answer": True, "projection": "linear_layernorm",
               "reduction": "row", "supervise": "all"},
    },
    "mux": {"method": "mux", "num_latents": 3, "codi": {"weight": 0.7}},
    "mux, everything set": {
        "method": "mux", "num_latents": 3, "codi": {"weight": 0.0},
        "multiplex": {"weight": 0.8, "tau": 0.6, "decay": 0.5, "target": "own"},
    },
    "simcot": {"method": "simcot", "num_latents": 2, "codi": {"weight": 0.7}},
    "lotus with the loss of MUX": {
        "method": "lotus", **LOTUS, "multiplex": {"weight": 0.7, "tau": 2.0},
    },
    "kava with the loss of MUX, residual": {
        "multiplex": {"weight": 0.7}, "latent_update": "residual", "num_iterations": 3,
    },
    "kava, sums": {
        "latent_readout": {"weight": 0.4, "target": "slot"},
        "kv": {"weight": 0.1, "answer": True, "keys": "pre_rope", "projection": "linear",
               "reduction": "sum"},
    },
    "kava, no distillation of states": {"codi": {"weight": 0.0}, "projection": "mlp"},
    "kava, every pass": {
        "num_iterations": 3, "projection_dim": 24,
        "kv": {
            "weight": 2.0, "supervise": "all", "loss": "mse", "layerwise_std": False,
            "eviction": {"lambda": 0.8},
        },
    },
    "kava, zeros": {
        "short_traces": "zeros", "num_latents": 8,
        "kv": {"weight": 1.0, "loss": "l1", "eviction": {"lambda": 1.0}},
    },
    "kava, keys before their rotation": {
        "kv": {"weight": 1.0, "keys": "pre_rope", "supervise": "all"},
    },
    "kava, what later steps attend to": {
        "num_latents": 4, "kv": {"weight": 1.0, "eviction": {"name": "later_steps"}},
    },
    "kava, one choice for all heads": {"kv": {"weight": 1.0, "eviction": {"shared": "mean"}}},
    "aligned": {"method": "aligned", "num_latents": 4, "kv": {"weight": 0.9}},
    "aligned, a block for each step": {
        "method": "aligned", "num_latents": 4, "kv": {"weight": 0.9},
        "latent_readout": {"weight": 0.7, "width": 2},
    },
    "aligned, in a window": {
        "method": "aligned", "num_latents": 6, "num_iterations": 3, "kv": {"weight": 0.9},
        "latent_readout": {"weight": 0.7, "width": 2}, "method_options": {"window": 2},
    },
    "aligned, in a window of one pass": {
        "method": "aligned", "num_latents": 6, "num_iterations": 2, "kv": {"weight": 0.9},
        "latent_readout": {"weight": 0.7, "width": 2}, "method_options": {"window": 1},
        "latent_update": "residual",
    },
    "aligned, longer than the window": {
        "method": "aligned", "num_latents": 4, "num_iterations": 3, "kv": {"weight": 0.9},
        "latent_readout": {"weight": 0.7, "width": 2}, "method_options": {"window": 2},
        "latent_update": "residual",
    },
    "aligned, blocks that begin together": {
        "method": "aligned", "num_latents": 6, "num_iterations": 2, "kv": {"weight": 0.9},
        "latent_readout": {"weight": 0.7, "width": 2}, "method_options": {"window": 2},
    },
    "aligned, as many latents as steps": {
        "method": "aligned", "num_latents": 8, "num_iterations": 5, "kv": {"weight": 0.9},
        "latent_readout": {"weight": 0.7, "width": 2}, "method_options": {"stop": True},
    },
    "aligned, without a window": {
        "method": "aligned", "num_latents": 4, "kv": {"weight": 0.9, "supervise": "all"},
        "latent_readout": {"weight": 0.7, "width": 2}, "method_options": {"window": None},
    },
    "aligned, in the last pass": {
        "method": "aligned", "num_latents": 4, "kv": {"weight": 0.9},
        "latent_readout": {"weight": 0.7, "width": 2},
        "method_options": {"readout_after": "last_pass"},
    },
    "aligned, T = 0": {
        "method": "aligned", "num_latents": 4, "num_iterations": 0,
        "latent_readout": {"weight": 0.7, "width": 2},
    },
    "aligned, what later steps attend to": {
        "method": "aligned", "num_latents": 4,
        "kv": {"weight": 0.9, "eviction": {"name": "later_steps"}},
        "latent_readout": {"weight": 0.7, "width": 2},
    },
    "aligned, the next token": {
        "method": "aligned", "kv": {"weight": 0.9, "keys": "pre_rope"},
        "latent_readout": {"weight": 0.5, "target": "next"},
    },
    "aligned, R-KV, the state before": {
        "method": "aligned", "num_latents": 3, "codi": {"weight": 0.0},
        "kv": {"weight": 0.0, "eviction": {"name": "rkv", "shared": "mean"}},
        "latent_readout": {"weight": 0.5, "target": "slot"},
    },
    "kava, pause tokens": {
        "num_iterations": 0, "num_latents": 3,
        "kv": {"weight": 1.0, "eviction": {"lambda": 0.0}, "supervise": "all"},
    },
}  # fmt: skip


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, theirs):
    """Within 1e-4 of each parameter's largest gradient (and a rounding error of the largest)."""
    assert ours.keys() == theirs.keys()
    scale = max(g.abs().max() for g in theirs.values())
    for name, expected in theirs.items():
        allowed = 1e-4 * expected.abs().max() + 1e-6 * scale
        gap = (ours[name] - expected).abs().max()
        assert gap <= allowed, f"{name}: {gap} > {allowed}"


def assert_same_terms(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def spans_of(data):
    """The tokens of each latent's span by row, None where the loss of MUX is not used."""
    if "multiplex_rows" not in data:
        return None
    found = [[] for _ in data["ids"]]
    for n, row in enumerate(data["multiplex_rows"].tolist()):
        assert data["multiplex_latents"][n] == len(found[row])  # the first latents, in order
        found[row].append(data["multiplex_ids"][data["multiplex_span_of"] == n].tolist())
    return found


def assert_equals_reference(thinker, rows=None):
    thinker.prepare_training()
    slow = to_textbook(copy.deepcopy(thinker))
    rows = rows or [thinker.encoder.row(e) for e in EXAMPLES]
    data = thinker.apply_stage(batching.collate(rows, pad_id=0))
    ours = thinker(counts=thinker.method.counts(data), **data)
    theirs = step(slow, rows, spans=spans_of(data))
    assert_same_terms(ours, theirs)
    assert_same_gradients(gradients(thinker, ours["loss"]), gradients(slow, theirs["loss"]))


EVERYWHERE = ("kava", "kava, keys before their rotation", "codi")
PLACES = [(family, case) for family in ("llama", "gemma2") for case in CASES] + [
    (family, case)
    for family in FAMILIES
    if family not in ("llama", "gemma2")
    for case in EVERYWHERE
]


@pytest.mark.parametrize("family,case", PLACES)
def test_loss_terms_and_gradients_equal_the_slow_reference(family, case):
    assert_equals_reference(reasoner(family, **CASES[case]))


@pytest.mark.parametrize("position", ("answer", "prompt"))
def test_states_are_compared_before_the_answer_or_at_the_end_of_its_prompt(position):
    """The third token is the answer's own in one row, and in others the second or the first."""
    thinker = reasoner(codi={"weight": 0.7, "position": position})
    rows = [thinker.encoder.row(e) for e in EXAMPLES]
    rows = [replace(row, answer_start=row.answer_start + len(row.answer) % 3) for row in rows]
    assert len({row.answer_start for row in rows}) > 1
    assert_equals_reference(thinker, rows)


@pytest.mark.parametrize("logits", (2**26, 60), ids=("all_labels", "labels_in_parts"))
@pytest.mark.parametrize("family,case", [
    ("llama", "cot"), ("llama", "no_cot"), ("llama", "pccot"), ("llama", "lotus"),
    ("llama", "simcot"), ("llama", "kava, every pass"), ("gemma2", "kava"),
])  # fmt: skip
def test_the_same_with_an_adapter(family, case, logits, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", logits)
    thinker = reasoner(family, **CASES[case], **lora())
    assert (labels_at_once(thinker.lm) < 4) == (logits == 60)
    with torch.no_grad():
        for name, weight in thinker.named_parameters():
            if "lora_B" in name:  # zero at first, where the adapter would do nothing
                weight.normal_(0, 0.05)
    trained = {n for n, p in thinker.named_parameters() if p.requires_grad}
    assert all(n.split(".")[0] != "backbone" or "lora_" in n for n in trained)
    assert_equals_reference(thinker)


@pytest.mark.parametrize("method", registry.names("methods"))
def test_every_method_that_exists_is_compared(method):
    needs_oracle(method)
    assert method in {case.get("method", "kava") for case in CASES.values()}


def split(thinker):
    """Counts of the whole batch, and its two unequal micro-batches."""
    whole = thinker.apply_stage(batch(thinker, EXAMPLES))
    parts = [
        thinker.apply_stage(batch(thinker, part), draw=draw)
        for draw, part in ((0, EXAMPLES[:1]), (1, EXAMPLES[1:]))
    ]
    counts, count = thinker.method.counts(whole), thinker.method.counts
    assert counts == {name: sum(count(part)[name] for part in parts) for name in counts}
    return whole, parts, counts


def accumulated(thinker):
    """Terms and gradients of the whole batch, then of its parts added up."""
    whole, parts, counts = split(thinker)
    terms = thinker(counts=counts, **whole)
    at_once = gradients(thinker, terms["loss"])
    at_once = {name: g.clone() for name, g in at_once.items()}
    thinker.zero_grad()
    per_part = [thinker(counts=counts, **part) for part in parts]
    sum(t["loss"] for t in per_part).backward()
    added = {n: p.grad for n, p in thinker.named_parameters() if p.grad is not None}
    return (terms, at_once), ({k: sum(t[k] for t in per_part) for k in terms}, added)


@pytest.mark.parametrize(
    "case", ("cot", "no_cot", "icot", "coconut", "lotus", "mux, everything set")
)
def test_accumulated_equals_whole(case):
    (terms, whole), (sums, added) = accumulated(reasoner(**CASES[case]))
    assert_same_terms(sums, terms)
    assert_same_gradients(added, whole)


@pytest.mark.parametrize(
    "case",
    (
        "codi",
        "simcot",
        "pccot",
        "lotus with L_KV",
        "kava",
        "kava, every pass",
        "kava, zeros",
        "kava, sums",
        "kava, everything that is off in the paper",
    ),
)
def test_accumulated_equals_whole_where_std_does_not_depend_on_the_split(case, monkeypatch):
    for module in (hidden_state, kv_cache):
        monkeypatch.setattr(module, "masked_std", lambda values, mask, dims: torch.tensor(1.7))
    (terms, whole), (sums, added) = accumulated(reasoner(**CASES[case]))
    assert_same_terms(sums, terms)
    assert_same_gradients(added, whole)


@pytest.mark.parametrize("case", ("pccot", "kava"))
def test_the_std_is_that_of_the_micro_batch_so_only_ce_adds_up_exactly(case):
    (terms, _), (sums, _) = accumulated(reasoner(**CASES[case]))
    for name in ("student_ce", "teacher_ce"):
        torch.testing.assert_close(sums[name], terms[name], rtol=1e-4, atol=1e-5)
    for name in terms.keys() & {"codi", "kv"}:
        assert abs(sums[name] / terms[name] - 1) < 0.5


def test_the_weights_of_the_loss_are_the_recipes():
    thinker = reasoner(teacher_ce_weight=0.25)
    t = thinker(**batch(thinker, EXAMPLES))
    expected = t["student_ce"] + 0.25 * t["teacher_ce"] + 0.7 * t["codi"] + 1.3 * t["kv"]
    torch.testing.assert_close(t["loss"], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_an_adapter_takes_its_input_as_it_is(family):
    model = reasoner(family, **lora())
    for name, weight in model.named_parameters():
        if ".lora_B." in name:  # zero at first, and with it the gradients of A
            torch.nn.init.normal_(weight, std=0.1)
    for weight in backbone_parameters(model.backbone):
        weight.data = weight.data.bfloat16()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    seen = set()
    for layer in layers:
        layer.lora_A["default"].register_forward_pre_hook(lambda _, given: seen.add(given[0].dtype))
    whole = batch(model, EXAMPLES)

    def run():
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            return gradients(model, model(**whole)["loss"])

    found = run()
    assert seen == {torch.bfloat16}
    for layer in layers:
        del layer._cast_input_dtype  # peft's own again
    expected = run()
    assert torch.float32 in seen
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert any(value.any() for name, value in found.items() if ".lora_A." in name)


def test_without_autocast_an_adapter_in_fp32_fits_a_backbone_in_bf16():
    model = reasoner("llama", **lora())
    for weight in backbone_parameters(model.backbone):
        weight.data = weight.data.bfloat16()
    assert model.generate(["w1 w2 w3"], max_new_tokens=2)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        *((m, c) for m in registry.names("methods") for c in ({}, lora())),
        ("kava", {"num_iterations": 0}),
        ("kava", {"kv": {"weight": 1.0, "projection": "linear"}}),
    ],
)
def test_each_trained_weight_gets_a_gradient(method, changes):
    """DDP need not look for unused ones, but in the first stages of a curriculum."""
    thinker = reasoner("qwen2", method, **changes)
    thinker(**batch(thinker, EXAMPLES))["loss"].backward()
    named = dict(thinker.named_parameters())
    missing = [name for name, p in named.items() if p.requires_grad and p.grad is None]
    assert not missing
    finds = arguments(thinker.recipe, Path("run"), thinker.device, False, 2)
    assert finds.ddp_find_unused_parameters is (thinker.method.stage(0.0) is not None)
