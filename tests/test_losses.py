"""L_KV and L_CODI: hand-computed values, zeros, what gets a gradient, empty and short traces."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, example, reasoner

from kava.backbones.masks import pad
from kava.reasoning.losses.cross_entropy import cross_entropy
from kava.reasoning.losses.distance import distance, masked_std
from kava.reasoning.losses.hidden_state import hidden_state_loss
from kava.reasoning.losses.kv_cache import kv_cache_loss
from kava.reasoning.losses.latent_readout import latent_readout_loss, readout_labels

KINDS = ("l1", "smooth_l1", "mse")

# Two layers, two numbers each:    layer 0      layer 1
TEACHER = torch.tensor([[1.0, 3.0], [0.0, 8.0]])
STUDENT = torch.tensor([[2.0, 3.5], [0.0, 4.0]])
# gaps                               1, 0.5       0, 4
# l1 (gap)                           1 + 0.5      0 + 4            = 1.5    and 4
# smooth_l1 (gap^2/2, gap - 1/2)     0.5 + 0.125  0 + 3.5          = 0.625  and 3.5
# mse (gap^2)                        1 + 0.25     0 + 16           = 1.25   and 16
SUMS = {"l1": (1.5, 4.0), "smooth_l1": (0.625, 3.5), "mse": (1.25, 16.0)}
# std with n - 1: layer 0 has mean 2, squares 1 + 1, /1 -> sqrt 2
#                 layer 1 has mean 4, squares 16 + 16, /1 -> sqrt 32
# all four:       mean 3, squares 4 + 0 + 9 + 25 = 38, /3 -> sqrt(38/3)
LAYER_STD, ONE_STD = (math.sqrt(2), math.sqrt(32)), math.sqrt(38 / 3)


def by_hand(kind, layerwise):
    first, second = SUMS[kind]
    if layerwise:
        return (first / LAYER_STD[0] + second / LAYER_STD[1]) / 4
    return (first + second) / ONE_STD / 4


@pytest.mark.parametrize("layerwise", (True, False))
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_state_loss_by_hand(kind, layerwise):
    # 2 layers x 2 rows x 1 feature
    found = hidden_state_loss(
        STUDENT[..., None], TEACHER[..., None], kind, layerwise, torch.tensor(2)
    )
    assert found.item() == pytest.approx(by_hand(kind, layerwise), rel=1e-6)


def pairs(keys, values):
    """[L, M] numbers as one row, one head, head size 1: a list over layers of [1, 1, M, 1]."""
    return [
        (k[None, None, :, None], v[None, None, :, None]) for k, v in zip(keys, values, strict=True)
    ]


@pytest.mark.parametrize("layerwise", (True, False))
@pytest.mark.parametrize("kind", KINDS)
def test_kv_cache_loss_by_hand(kind, layerwise):
    # A third slot is not filled: its numbers are in neither the mean nor the std.
    wild, rubbish = torch.full((2, 1), 1e4), torch.full((2, 1), -77.0)
    keys, student_keys = torch.cat((TEACHER, wild), 1), torch.cat((STUDENT, rubbish), 1)
    # values 0 2 | 0 2 against 1 3 | 1 3: every gap is 1, worth 1, 1/2, 1;
    # std of a layer: sqrt 2; of all four (mean 1, squares 4, /3): sqrt(4/3)
    values = torch.tensor([[0.0, 2.0, 1e4], [0.0, 2.0, 1e4]])
    filled = [torch.tensor([[[True, True, False]]])] * 2
    found = kv_cache_loss(
        pairs(student_keys, values + 1), pairs(keys, values), filled, kind, layerwise,
        torch.tensor(2),
    )  # fmt: skip
    value_term = {"l1": 1, "smooth_l1": 0.5, "mse": 1}[kind]
    value_term /= math.sqrt(2) if layerwise else math.sqrt(4 / 3)
    assert found.item() == pytest.approx((by_hand(kind, layerwise) + value_term) / 2, rel=1e-6)


def test_filled_slots_may_differ_by_head_and_layer_and_keys_have_their_own_std():
    keys = torch.randn(2, 3, 2, 4, 5)  # L, B, H, M, D
    values = 100 * torch.randn(2, 3, 2, 4, 5)
    filled = torch.zeros(2, 3, 2, 4, dtype=torch.bool)
    for b, slots in enumerate((4, 0, 2)):
        filled[:, b, :, :slots] = True
    teacher = list(zip(keys, values, strict=True))
    student = [(k + 1, v + 100) for k, v in teacher]
    found = kv_cache_loss(student, teacher, list(filled), "l1", False, torch.tensor(6))
    expected = 1 / keys[filled].std() + 100 / values[filled].std()
    assert found.item() == pytest.approx(expected.item() / 2, rel=1e-5)


@pytest.mark.parametrize("layerwise", (True, False))
@pytest.mark.parametrize("kind", KINDS)
def test_zero_when_the_student_is_the_teacher(kind, layerwise):
    states = torch.randn(2, 3, 4)
    assert hidden_state_loss(states, states, kind, layerwise, torch.tensor(3)) == 0
    cached = [(torch.randn(2, 2, 4, 8), torch.randn(2, 2, 4, 8)) for _ in range(2)]
    filled = [torch.ones(2, 2, 4, dtype=torch.bool)] * 2
    assert kv_cache_loss(cached, cached, filled, kind, layerwise, torch.tensor(8)) == 0


def test_no_gradient_into_the_teacher():
    student, teacher = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    hidden_state_loss(student, teacher, "l1", True, torch.tensor(3)).backward()
    assert student.grad.any() and teacher.grad is None
    ours, theirs = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(2))
    filled = [torch.ones(1, 2, 4, dtype=torch.bool)]
    loss = kv_cache_loss([(ours,) * 2], [(theirs,) * 2], filled, "mse", True, torch.tensor(4))
    loss.backward()
    assert ours.grad.any() and theirs.grad is None


@pytest.mark.parametrize("term", ("codi", "kv"))
def test_no_gradient_into_the_teachers_path(family, term):
    """The states read after <bot> are cut off from the backbone: only the student's are left."""
    thinker = reasoner(family)
    data = batch(thinker, [example(4, 6), example(7, 3, 1)])
    written, honest = [], thinker.extend

    def spy(*args, **kwargs):
        output, context = honest(*args, **kwargs)
        output.last_hidden_state.retain_grad()
        written.append(output.last_hidden_state)
        return output, context

    thinker.extend = spy
    terms = thinker(**data)
    _, teacher, *_ = written  # Q, then C and A, then the passes of the student
    assert teacher.shape[1] == data["steps"].shape[1] + data["answer"].shape[1]
    terms["teacher_ce"].backward(retain_graph=True)
    assert teacher.grad.any()
    teacher.grad = None
    terms[term].backward()
    assert teacher.grad is None


def test_short_traces_supervise_their_slots_only():
    student = [(torch.randn(2, 1, 4, 3, requires_grad=True),) * 2]
    teacher = [(torch.randn(2, 1, 4, 3),) * 2]
    filled = torch.tensor([[[True, True, False, False]], [[False] * 4]])
    kv_cache_loss(student, teacher, [filled], "l1", True, torch.tensor(2)).backward()
    assert torch.equal(student[0][0].grad.abs().sum(-1) > 0, filled)


@pytest.mark.parametrize("layerwise", (True, False))
def test_a_batch_of_empty_traces_is_zero_and_finite(layerwise):
    student = [(torch.randn(2, 1, 4, 3, requires_grad=True),) * 2]
    teacher = [(torch.zeros(2, 1, 4, 3),) * 2]
    filled = [torch.zeros(2, 1, 4, dtype=torch.bool)]
    loss = kv_cache_loss(student, teacher, filled, "smooth_l1", layerwise, torch.tensor(0))
    loss.backward()
    assert loss == 0 and not student[0][0].grad.any()


@pytest.mark.parametrize("method", ("pccot", "kava"))
def test_a_step_over_empty_traces_is_finite(family, method):
    changes = {"kv": {"weight": 1.0, "supervise": "all"}} if method == "kava" else {}
    thinker = reasoner(family, method, **changes)
    terms = thinker(**batch(thinker, [example(4, 0), example(7, 0, 1)]))
    terms["loss"].backward()
    assert terms.get("kv", torch.zeros(())) == 0
    assert all(t.isfinite() for t in terms.values())
    assert all(p.grad.isfinite().all() for p in thinker.parameters() if p.grad is not None)


def test_distances_by_hand():
    student, teacher = torch.tensor([0.0, 0.5, -3.0]), torch.zeros(3)
    assert distance("l1", student, teacher).tolist() == [0, 0.5, 3]
    assert distance("smooth_l1", student, teacher).tolist() == [0, 0.125, 2.5]
    assert distance("mse", student, teacher).tolist() == [0, 0.25, 9]


def test_masked_std_is_torchs_over_what_is_left():
    values, mask = torch.randn(2, 5, 3), torch.tensor([1, 0, 1, 1, 0]).bool()[None, :, None]
    found = masked_std(values, mask, (1, 2)).flatten()
    torch.testing.assert_close(found, values[:, [0, 2, 3]].flatten(1).std(1))
    assert masked_std(values, torch.zeros(1).bool(), (0, 1, 2)) == 1
    assert masked_std(torch.zeros(2, 5, 3), mask, (0, 1, 2)) == 1
    assert masked_std(1e-9 * values, mask, (0, 1, 2)) == pytest.approx(1e-6)


def test_empty_traces_that_count_as_zeros_do_not_blow_up():
    # All of what the latents are compared with is zero, and so is its standard deviation.
    rows = [example(4, 0), example(7, 0, 1)]
    found = {}
    for reading in ("mask", "zeros"):
        thinker = reasoner(short_traces=reading)
        found[reading] = thinker(**batch(thinker, rows))["kv"]
    assert found["mask"] == 0 and 0 < found["zeros"] < 1e3


def test_a_loss_without_weight_is_left_out_and_its_pass_with_it():
    thinker = reasoner(kv={"weight": 0.0})
    data = batch(thinker, [example(4, 3), example(7, 5, 1)])
    plain = reasoner(method="pccot", codi={"weight": 0.7, "loss": "l1"})
    plain.load_state_dict(thinker.state_dict())
    terms, same = thinker(**data), plain(**data)
    assert terms.keys() == same.keys() and "kv" not in terms
    assert terms["loss"] == same["loss"]
    assert thinker.method.queries is None


class Reading(SimpleNamespace):
    """What cross-entropy needs of a reasoner: a head of its own."""

    def __init__(self, weight, trained=True, cap=None):
        head = torch.nn.Linear(*reversed(weight.shape), bias=False)
        head.weight = torch.nn.Parameter(weight.clone(), requires_grad=trained)
        super().__init__(head=head, cap=cap, calls=[])
        self.lm = SimpleNamespace(get_output_embeddings=lambda: head)

    def logits(self, hidden):
        self.calls.append(len(hidden))
        scores = self.head(hidden)
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap


def test_cross_entropy_divides_by_the_count_it_is_given():
    reading = Reading(torch.eye(2))
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    # -log(3/4) for label 1, -log(1/2) for label 0
    found = cross_entropy(reading, logits, torch.tensor([1, 0]), torch.tensor(4))
    assert found.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 4)


@pytest.mark.parametrize("trained", (True, False), ids=("head_trained", "head_frozen"))
@pytest.mark.parametrize("cap", (None, 2.0))
@pytest.mark.parametrize("at_once", (1, 3, 7, 100))
def test_cross_entropy_in_parts_is_that_of_all_labels(monkeypatch, at_once, cap, trained):
    """Loss and gradients, of states and of the head, also where the sum is weighed afterwards."""
    torch.manual_seed(0)
    hidden, ids = torch.randn(7, 4), torch.randint(5, (7,))
    weight, count = torch.randn(5, 4), torch.tensor(9)
    monkeypatch.setattr("kava.reasoning.losses.cross_entropy.LOGITS_AT_ONCE", at_once * 5)
    reading, states = Reading(weight, trained, cap), hidden.clone().requires_grad_()
    (3 * cross_entropy(reading, states, ids, count)).backward()
    assert reading.calls == ([7] if trained else [len(part) for part in ids.split(at_once)])

    whole, plain = Reading(weight, trained, cap), hidden.clone().requires_grad_()
    logits = whole.logits(plain)
    loss = 3 * F.cross_entropy(logits, ids, reduction="sum") / count
    loss.backward()
    torch.testing.assert_close(states.grad, plain.grad)
    if trained:
        torch.testing.assert_close(reading.head.weight.grad, whole.head.weight.grad)
    else:
        assert reading.head.weight.grad is None
    with torch.no_grad():
        found = cross_entropy(reading, hidden, ids, count)
    torch.testing.assert_close(3 * found, loss.detach())


def test_cross_entropy_of_no_label_is_zero():
    reading, states = Reading(torch.randn(5, 4)), torch.zeros(0, 4, requires_grad=True)
    loss = cross_entropy(reading, states, torch.zeros(0).long(), torch.tensor(3))
    loss.backward()
    assert loss == 0 and states.grad.shape == (0, 4)


# -- latent readout ------------------------------------------------------------------------------

TRACES = st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=3)


@given(
    TRACES, st.sampled_from((None, 1, 2, 3)), st.integers(1, 4), st.sampled_from(("own", "next"))
)
def test_each_latent_is_read_against_its_own_token_or_the_next(traces, width, blocks, target):
    """By loops: token j of step i belongs to latent i c + j; or token i of all to latent i."""
    latents = blocks * (width or 3)
    flat = [[i for i, n in enumerate(lengths) for _ in range(n)] for lengths in traces]
    step_of, mask = pad(flat, "right", -1)
    steps = torch.arange(100, 100 + step_of.numel()).view_as(step_of)
    expected = []
    for b, lengths in enumerate(traces):
        total, column = sum(lengths), 0
        for i, n in enumerate(lengths):
            for j in range(n):
                slot = column if width is None else i * width + j
                inside = slot < latents and (width is None or j < width)
                read = column + (target == "next")
                if inside and read < total:
                    expected.append((b, slot, int(steps[b, read])))
                column += 1
    rows, places, ids = readout_labels(steps, step_of, latents, width, target)
    assert list(zip(rows.tolist(), places.tolist(), ids.tolist(), strict=True)) == sorted(expected)
    assert mask.sum() == sum(map(sum, traces))


def test_readout_of_nothing_is_zero():
    nothing = torch.zeros(0, 4), torch.zeros(0).long(), torch.tensor(0)
    assert latent_readout_loss(Reading(torch.randn(7, 4)), *nothing) == 0
