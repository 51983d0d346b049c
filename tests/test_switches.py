"""Each switch of a recipe changes the terms that it is about, and no other by a single bit."""

import pytest
import torch
from tiny import batch, example, reasoner, stepped

EXAMPLES = [example(4, 3), stepped(7, (3, 4), 1, "1 2"), example(3, 7, 2), example(5, 0, 3)]
STUDENT = {"student_ce", "codi", "kv"}
BASE = {"codi": {"weight": 0.7}, "kv": {"weight": 1.3}}

SWITCHES = {
    "teacher_ce_weight": ({"teacher_ce_weight": 0.1}, set()),
    "num_latents": ({"num_latents": 3}, STUDENT),
    "num_iterations": ({"num_iterations": 3}, STUDENT),
    "no iteration": ({"num_iterations": 0}, STUDENT),
    "projection": ({"projection": "mlp"}, STUDENT),
    "no projection": ({"projection": "none"}, STUDENT),
    "projection_dim": ({"projection_dim": 8}, STUDENT),
    "drop_last_step": ({"drop_last_step": True}, {"teacher_ce", "codi", "kv"}),
    "short_traces": ({"short_traces": "zeros"}, {"kv"}),
    "codi.weight": ({"codi": {"weight": 0.2}}, set()),
    "codi.loss": ({"codi": {"weight": 0.7, "loss": "smooth_l1"}}, {"codi"}),
    "codi.layerwise_std": ({"codi": {"weight": 0.7, "layerwise_std": False}}, {"codi"}),
    "codi.include_embeddings": ({"codi": {"weight": 0.7, "include_embeddings": True}}, {"codi"}),
    "kv.weight": ({"kv": {"weight": 0.2}}, set()),
    "kv.loss": ({"kv": {"weight": 1.3, "loss": "mse"}}, {"kv"}),
    "kv.layerwise_std": ({"kv": {"weight": 1.3, "layerwise_std": False}}, {"kv"}),
    "kv.eviction": ({"kv": {"weight": 1.3, "eviction": {"name": "crop_right"}}}, {"kv"}),
    "kv.eviction.lambda": ({"kv": {"weight": 1.3, "eviction": {"lambda": 0.9}}}, {"kv"}),
    "kv.eviction.shared": ({"kv": {"weight": 1.3, "eviction": {"shared": "max"}}}, {"kv"}),
    "kv.keys": ({"kv": {"weight": 1.3, "keys": "pre_rope"}}, {"kv"}),
    "kv.reduction: row": ({"kv": {"weight": 1.3, "reduction": "row"}}, {"kv"}),
    "kv.reduction: sum": ({"kv": {"weight": 1.3, "reduction": "sum"}}, {"kv"}),
    "kv.projection": ({"kv": {"weight": 1.3, "projection": "linear_layernorm"}}, {"kv"}),
}
ADDED = {
    "kv.supervise": (
        {"kv": {"weight": 1.3, "supervise": "all"}}, {"kv_step_1", "kv_step_2", "kv_step_3"}, {"kv"}
    ),
    "kv.answer": ({"kv": {"weight": 1.3, "answer": True}}, {"kv_answer"}, set()),
    "latent_readout": ({"latent_readout": {"weight": 0.4}}, {"readout"}, set()),
}  # fmt: skip


def terms(**changes):
    thinker = reasoner(**{**BASE, **changes})
    with torch.no_grad():
        return thinker(**batch(thinker, EXAMPLES))


def differing(before, after):
    return {name for name in before if name != "loss" and before[name] != after[name]}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_its_terms_and_no_other(switch):
    changes, expected = SWITCHES[switch]
    before, after = terms(), terms(**changes)
    assert before.keys() == after.keys()
    assert differing(before, after) == expected
    assert before["loss"] != after["loss"]


@pytest.mark.parametrize("switch", ADDED)
def test_a_switch_that_adds_terms_leaves_the_others(switch):
    changes, added, expected = ADDED[switch]
    before, after = terms(), terms(**changes)
    assert after.keys() - before.keys() == added
    assert differing(before, after) == expected


def test_supervising_all_passes_is_the_mean_of_them():
    found = terms(kv={"weight": 1.3, "supervise": "all"})
    parts = [found[f"kv_step_{i}"] for i in (1, 2, 3)]
    torch.testing.assert_close(found["kv"], sum(parts) / 3)
    torch.testing.assert_close(found["kv_step_3"], terms()["kv"])


def test_a_linear_projection_of_keys_and_values_begins_as_the_identity():
    torch.testing.assert_close(
        terms(kv={"weight": 1.3, "projection": "linear"})["kv"], terms()["kv"]
    )


def test_a_projection_of_keys_and_values_learns_and_is_of_no_use_to_answers():
    thinker = reasoner(kv={"weight": 1.3, "projection": "linear", "answer": True})
    weights = dict(thinker.method_modules.named_parameters())
    assert len(weights) == 2 * 2 * 2  # layers, keys and values, weight and bias
    before = thinker.continue_from(thinker.think(["w1 w2 w3"]), 5)
    thinker(**batch(thinker, EXAMPLES))["loss"].backward()
    with torch.no_grad():
        for weight in weights.values():
            assert weight.grad.any()
            weight.normal_()
    assert torch.equal(thinker.continue_from(thinker.think(["w1 w2 w3"]), 5), before)


def test_row_weighs_rows_alike_and_mean_weighs_slots_alike():
    both, first, second = EXAMPLES[:3:2], EXAMPLES[:1], EXAMPLES[2:3]

    def kv(examples, reduction):
        thinker = reasoner(kv={"weight": 1.3, "loss": "l1", "reduction": reduction})
        counted = thinker.method.counts(batch(thinker, examples))["slots"]
        return thinker(**batch(thinker, examples))["kv"].item(), counted.item()

    assert kv(both, "row")[1] == 2 and kv(both, "mean")[1] == 3 + 5
    # The std is that of the batch, so parts alone are compared where it is taken out.
    import kava.reasoning.losses.kv_cache as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "masked_std", lambda *_: torch.tensor(1.0))
        a, b = kv(first, "mean")[0], kv(second, "mean")[0]
        assert kv(both, "row")[0] == pytest.approx((a + b) / 2, rel=1e-5)
        assert kv(both, "mean")[0] == pytest.approx((3 * a + 5 * b) / 8, rel=1e-5)
        layers, heads, size = 2, 2, 8
        assert kv(both, "sum")[0] == pytest.approx(
            kv(both, "mean")[0] * layers * heads * size, rel=1e-5
        )


@pytest.mark.parametrize(
    "method,loss", (("kava", "l1"), ("pccot", "smooth_l1"), ("codi", "smooth_l1"))
)
def test_the_distance_of_states_is_the_methods_own_unless_said(method, loss):
    assert reasoner("llama", method).recipe.codi.loss == loss
    given = reasoner("llama", method, codi={"weight": 1, "loss": "mse"})
    assert given.recipe.codi.loss == "mse"
