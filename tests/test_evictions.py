"""Which reasoning tokens survive: against loops over Python numbers, and the laws around it."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import best, scores, spans
from refusals import refused
from tiny import batch, example, reasoner, stepped

from kava.backbones.attention import answer_attention
from kava.reasoning.evictions import EvictionInputs, gather
from kava.reasoning.methods import prefill_question, teacher_forward
from kava.recipe import registry

NAMES = registry.names("evictions")
SCORED = [name for name in NAMES if name != "random"]
H, G, D, A = 2, 2, 4, 3

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=3)


class Block:
    """Random queries and keys of one layer; `lengths` and `answers` say what is real."""

    def __init__(self, lengths, seed=0, columns=None, answers=None):
        torch.manual_seed(seed)
        batch, width = len(lengths), max(lengths) if columns is None else columns
        self.lengths, self.answers = lengths, answers or [A] * batch
        self.queries = torch.randn(batch, H * G, max(self.answers), D)
        self.keys = torch.randn(batch, H, width, D)
        self.mask = torch.arange(width) < torch.tensor(lengths)[:, None]
        self.answer_mask = torch.arange(max(self.answers)) < torch.tensor(self.answers)[:, None]

    def keep(self, name, budget, lam=0.3):
        attention = answer_attention(self.queries, self.keys, self.mask, D**-0.5)
        eviction = registry.find("evictions", name)(lam=lam)
        torch.manual_seed(7)
        scored = EvictionInputs(self.keys, self.mask, attention, self.answer_mask)
        return eviction.keep(scored, budget)

    def kept(self, name, budget, lam=0.3):
        """Columns in filled slots, [row][head] -> list."""
        columns, filled = self.keep(name, budget, lam)
        assert columns.shape == filled.shape == (len(self.lengths), H, budget)
        return [
            [c[f].tolist() for c, f in zip(*row, strict=True)]
            for row in zip(columns, filled, strict=False)
        ]

    def slow(self, name, budget, lam=0.3):
        """The same by loops; None where two scores at the border are too close to tell apart."""
        kept = []
        for b, length in enumerate(self.lengths):
            kept.append([])
            for h in range(H):
                if name in ("evenly_spaced", "mean_pooling"):
                    kept[b].append([span[0] for span in spans(length, budget)])
                    continue
                keys = self.keys[b, h, :length].double().tolist()
                heads = self.queries[b, h * G : (h + 1) * G, : self.answers[b]].double().tolist()
                numbers = scores(name, lam, heads, keys, D**-0.5) if length else []
                order = sorted(numbers, reverse=True)
                tie = budget < length and order[budget - 1] - order[budget] < 1e-6
                kept[b].append(None if tie else best(numbers, budget))
        return kept


def agree(fast, slow):
    pairs = [pair for rows in zip(fast, slow, strict=True) for pair in zip(*rows, strict=True)]
    return all(theirs is None or ours == theirs for ours, theirs in pairs)


@pytest.mark.parametrize("name", SCORED)
@given(LENGTHS, st.integers(1, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_keeps_what_the_equations_keep(name, lengths, budget, lam, seed):
    answers = [1 + (seed + i) % A for i in range(len(lengths))]
    block = Block(lengths, seed, answers=answers)
    budget = max(budget, *lengths) if name == "full" else budget
    assert agree(block.kept(name, budget, lam), block.slow(name, budget, lam))


DIFFERENT = (
    "rkv", "cosine", "attention", "crop_right", "crop_left", "rkv_decoding", "evenly_spaced",
    "later_steps",
)  # fmt: skip


def test_the_oracle_is_not_blind():
    block = Block([9, 8], 3)
    kept = {name: str(block.slow(name, 4)) for name in DIFFERENT}
    assert len(set(kept.values())) == len(kept)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(LENGTHS, st.integers(1, 12), st.integers(0, 4), st.integers(0, 10**6))
def test_never_a_pad_always_in_reading_order_first_slots_filled(name, lengths, budget, extra, seed):
    block = Block(lengths, seed, columns=max(lengths) + extra)
    if name == "full":
        budget = max(budget, *lengths)
    _, filled = block.keep(name, budget)
    for row, flags, length in zip(block.kept(name, budget), filled, lengths, strict=True):
        for columns, slots in zip(row, flags, strict=True):
            assert len(columns) == min(budget, length)
            assert slots.tolist() == [i < len(columns) for i in range(budget)]
            assert all(column < length for column in columns)
            assert columns == sorted(set(columns))


@given(LENGTHS, st.integers(1, 6), st.integers(0, 10**6))
def test_mean_pooling_is_the_mean_of_each_span(lengths, budget, seed):
    block = Block(lengths, seed, columns=max(lengths) + 1)
    columns, filled = block.keep("mean_pooling", budget)
    means = registry.find("evictions", "mean_pooling")().gather(
        block.keys, columns, filled, block.mask
    )
    for keys, slots, length in zip(block.keys, means.transpose(1, 2), lengths, strict=True):
        cut = spans(length, budget)
        for slot, span in zip(slots, cut, strict=False):
            torch.testing.assert_close(slot, sum(keys[:, i] for i in span) / len(span))
        assert not slots[len(cut) :].any()


def test_mean_pooling_in_the_method_also_in_blocks():
    for method, latents in (("kava", 5), ("lotus", 6)):
        kv = {"weight": 1.0, "eviction": {"name": "mean_pooling"}}
        thinker = reasoner(method=method, num_latents=latents, kv=kv)
        data = batch(thinker, [stepped(4, (3, 5)), stepped(4, (2,))])
        with torch.no_grad():
            start = prefill_question(thinker, data)
            teacher = teacher_forward(thinker, start, data)
            target, _ = thinker.method.kv.compress(data, teacher)
        blocks = [(data["step_of"] == i, 3) for i in range(2)] if method == "lotus" else None
        for (keys, _), (made, _) in zip(teacher.steps, target, strict=True):
            for b in range(2):
                slot = 0
                for mask, budget in blocks or [(data["steps_mask"], latents)]:
                    own = keys[b, :, mask[b]]
                    for span in spans(own.shape[1], budget):
                        torch.testing.assert_close(made[b, :, slot], own[:, span].mean(1))
                        slot += 1
                    slot += budget - len(spans(own.shape[1], budget))


def test_an_eviction_sees_the_tokens():
    thinker = reasoner(kv={"weight": 1.0})
    data = batch(thinker, [example(3, 9), example(5, 7, 1)])
    with torch.no_grad():
        teacher = teacher_forward(thinker, prefill_question(thinker, data), data, queries="answer")
    inputs = thinker.method.kv.eviction_inputs(data, teacher, 0, data["steps_mask"])
    assert torch.equal(inputs.tokens, data["steps"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", (1, 6))
def test_a_budget_of_the_trace_is_the_identity(name, length):
    block = Block([length, length])
    columns, filled = block.keep(name, length)
    assert filled.all()
    assert torch.equal(gather(block.keys, columns), block.keys)


@pytest.mark.parametrize("name", NAMES)
def test_no_column_at_all_fills_nothing(name):
    block = Block([0, 0])
    columns, filled = block.keep(name, 4)
    assert not filled.any()
    assert torch.equal(gather(block.keys, columns), torch.zeros(2, H, 4, D))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_steps_beside_one_with_steps(name):
    kept = Block([0, 6]).kept(name, 6)
    assert kept == [[[], []], [list(range(6))] * H]


@pytest.mark.parametrize("name", SCORED)
@settings(max_examples=40)
@given(LENGTHS.filter(lambda x: len(x) > 1), st.integers(0, 10**6), st.integers(0, 3))
def test_batch_mates_change_nothing(name, lengths, seed, extra):
    budget = 9 if name == "full" else 4
    together = Block(lengths, seed, columns=max(lengths) + extra)
    for i, length in enumerate(lengths):
        alone = Block([length])
        alone.queries, alone.answer_mask = together.queries[[i]], together.answer_mask[[i]]
        alone.keys = together.keys[[i], :, :length]
        assert together.kept(name, budget)[i] == alone.kept(name, budget)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_head_does_not_look_at_another(name):
    block = Block([9, 7], 5)
    budget = 9 if name == "full" else 4
    before = block.kept(name, budget)
    block.keys[:, 1], block.queries[:, G:] = torch.randn(2, 9, D), torch.randn(2, G, A, D)
    after = block.kept(name, budget)
    assert [row[0] for row in before] == [row[0] for row in after]
    if name in ("rkv", "cosine", "attention", "rkv_decoding", "later_steps"):
        assert [row[1] for row in before] != [row[1] for row in after]


@pytest.mark.parametrize("lam,peer", ((0.0, "cosine"), (1.0, "attention")))
@given(LENGTHS, st.integers(0, 10**6))
def test_lambda_at_its_ends_is_a_peer(lam, peer, lengths, seed):
    block = Block(lengths, seed)
    assert block.kept("rkv", 3, lam) == block.kept(peer, 3)


def test_random_is_fixed_by_the_seed_and_differs_between_heads():
    kept = Block([9] * 6).kept("random", 4)
    assert kept == Block([9] * 6).kept("random", 4)
    assert any(row[0] != row[1] for row in kept)


@contextmanager
def too_long(tokens, latents):
    with refused("reasoning.trace-too-long", "kv.eviction.name") as told:
        yield
    for value in ("'full'", f"{tokens} tokens", f"num_latents {latents}"):
        assert value in str(told.value)


def test_full_refuses_what_does_not_fit():
    with too_long(9, 5):
        thinker = reasoner(kv={"weight": 1.0, "eviction": {"name": "full"}})
        thinker(**batch(thinker, [example(3, 9)]))


def test_full_refuses_rows_before_the_first_step():
    thinker = reasoner(kv={"weight": 1.0, "eviction": {"name": "full"}})
    fits, long = thinker.encoder.rows([example(3, 5), example(3, 9)])
    thinker.method.check_rows([fits])
    with too_long(9, 5):
        thinker.method.check_rows([fits, long])
    reasoner(kv={"weight": 0.0, "eviction": {"name": "full"}}).method.check_rows([long])
    blocks = reasoner(method="lotus", kv={"weight": 1.0, "eviction": {"name": "full"}})
    # The third step has no block of its own, and may be long.
    blocks.method.check_rows(blocks.encoder.rows([stepped(4, (3, 2, 4))]))
    with too_long(4, 3):
        blocks.method.check_rows(blocks.encoder.rows([stepped(4, (3, 4))]))
    with too_long(4, 3):
        blocks(**batch(blocks, [stepped(4, (3, 4))]))  # where nobody has looked before


@pytest.mark.parametrize("name", ["rkv", "rkv_decoding"])
def test_scores_are_those_of_fp32_in_mixed_precision(name):
    thinker = reasoner(kv={"weight": 1.0, "eviction": {"name": name, "lambda": 0.5}})
    data = batch(thinker, [example(3, 9), example(5, 7, 1)])
    with torch.no_grad():
        start = prefill_question(thinker, data)
        teacher = teacher_forward(thinker, start, data, queries="answer")
        plain = thinker.method.kv.choose(data, teacher)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = thinker.method.kv.choose(data, teacher)
    for one, other in zip(plain, mixed, strict=True):
        assert torch.equal(one.columns, other.columns)
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=0)


def compress(thinker, data, change=None):
    """K~ and V~ of a batch; `change` may edit the teacher's pass before."""
    with torch.no_grad():
        method = thinker.method
        start = prefill_question(thinker, data)
        teacher = teacher_forward(thinker, start, data, queries=method.queries)
        if change:
            change(teacher)
        return method.kv.compress(data, teacher)


@pytest.mark.parametrize("name", [name for name in SCORED if name != "full"])
def test_in_the_method_layers_and_rows_are_compressed_on_their_own(name):
    thinker = reasoner(kv={"weight": 1.0, "eviction": {"name": name, "lambda": 0.5}})
    examples = [example(4, 9), example(8, 7, 1, "1 2 3")]
    target, filled = compress(thinker, batch(thinker, examples))

    def disturb(teacher):
        teacher.steps[1][0].normal_()
        teacher.queries and teacher.queries.queries[1].normal_()

    disturbed, _ = compress(thinker, batch(thinker, examples), disturb)
    assert all(torch.equal(a, b) for a, b in zip(target[0], disturbed[0], strict=True))
    assert not torch.equal(target[1][0], disturbed[1][0])
    for i in (0, 1):
        alone, alone_filled = compress(thinker, batch(thinker, [examples[i]]))
        for layer, pair in enumerate(alone):
            assert torch.equal(alone_filled[layer][0], filled[layer][i])
            assert all(
                torch.allclose(a[0], b[i], atol=1e-4)
                for a, b in zip(pair, target[layer], strict=True)
            )


def test_zeros_pads_short_traces_and_counts_them():
    thinker = reasoner(short_traces="zeros", num_latents=5)
    target, filled = compress(thinker, batch(thinker, [example(4, 2), example(4, 0)]))
    for (keys, values), slots in zip(target, filled, strict=True):
        assert slots.all()
        assert not keys[0, :, 2:].any() and not values[0, :, 2:].any()
        assert keys[0, :, :2].abs().min() > 0
        assert not keys[1].any() and not values[1].any()
