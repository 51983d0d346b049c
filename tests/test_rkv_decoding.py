"""R-KV's decoding score against loops over Python numbers: each setting, pads on either side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import importance, pooled, repetition
from refusals import refused

from kava.backbones.attention import answer_attention
from kava.reasoning.evictions import EvictionInputs, rkv_decoding
from kava.reasoning.evictions.random import Random
from kava.reasoning.evictions.rkv_decoding import DIRECTIONS, RKVDecoding

H, G, D, A, C = 2, 2, 3, 2, 12


def block(lengths, seed, side="right"):
    """Keys in few directions, so that there are near-copies; queries; masks."""
    torch.manual_seed(seed)
    batch = len(lengths)
    ideas = torch.nn.functional.normalize(torch.randn(batch, H, 3, D), dim=-1)
    kind = torch.randint(3, (batch, H, C))
    keys = ideas.gather(2, kind[..., None].expand(-1, -1, -1, D)) + 0.4 * torch.randn(
        batch, H, C, D
    )
    real = torch.arange(C) < torch.tensor(lengths)[:, None]
    mask = real if side == "right" else real.flip(1)
    return keys, torch.randn(batch, H * G, A, D), mask


def score(eviction, keys, queries, mask):
    attention = answer_attention(queries, keys, mask, D**-0.5)
    observers = torch.ones(keys.shape[0], A, dtype=torch.bool)
    return eviction.score(EvictionInputs(keys, mask, attention, observers))


@given(
    st.lists(st.integers(1, C), min_size=1, max_size=3),
    st.sampled_from((1, 3, 7)),
    st.sampled_from((0.0, 0.5, 0.9)),
    st.sampled_from(DIRECTIONS),
    st.sampled_from((0.1, 0.2, 0.5)),
    st.floats(0, 1),
    st.sampled_from(("left", "right")),
    st.integers(0, 10**6),
)
def test_score_is_the_equations(lengths, kernel, threshold, retain, ratio, lam, side, seed):
    keys, queries, mask = block(lengths, seed, side)
    eviction = RKVDecoding(lam, kernel, threshold, retain, ratio)
    found = score(eviction, keys, queries, mask)
    for b in range(len(lengths)):
        for h in range(H):
            own = keys[b, h, mask[b]].double().tolist()
            heads = queries[b, h * G : (h + 1) * G].double().tolist()
            weight = pooled(importance(heads, own, D**-0.5), kernel)
            repeated = repetition(own, threshold, retain, ratio)
            slow = [lam * i - (1 - lam) * r for i, r in zip(weight, repeated, strict=True)]
            torch.testing.assert_close(found[b, h, mask[b]].double(), torch.tensor(slow).double())


def test_the_settings_all_matter():
    data = block([C, C], 1)
    plain = score(RKVDecoding(0.3), *data)
    changes = {"kernel": 1, "threshold": 0.9, "retain": "first", "lam": 0.5}
    for name, value in changes.items():
        other = score(RKVDecoding(**{"lam": 0.3, name: value}), *data)
        assert not torch.allclose(other, plain), name
    few, many = (
        score(RKVDecoding(0.3, retain="last_percent", retain_ratio=ratio), *data)
        for ratio in (0.1, 0.5)
    )
    assert torch.allclose(few, plain) and not torch.allclose(many, plain)


def test_of_copies_the_last_is_spared():
    # a b a c a: the two before it spare the last a, which spares the one before itself
    a, b, c = torch.eye(3)
    keys = torch.stack((a, b, a, c, a))[None, None]
    mask = torch.ones(1, 5, dtype=torch.bool)
    scored = EvictionInputs(keys, mask, torch.zeros(1, 1, 1, 5), mask[:, :1])
    last = RKVDecoding(0.0).redundancy(scored)[0, 0]
    expected = torch.tensor([2.0, 0, 1, 0, 0]) / 5
    torch.testing.assert_close(last, expected.softmax(0))
    first = RKVDecoding(0.0, retain="first").redundancy(scored)[0, 0]
    torch.testing.assert_close(first, expected.flip(0).softmax(0))


def test_in_pieces_as_in_one(monkeypatch):
    data = block([C, 7], 2, "left")
    whole = score(RKVDecoding(), *data)
    monkeypatch.setattr(rkv_decoding, "ROWS", 5)
    torch.testing.assert_close(score(RKVDecoding(), *data), whole)


@pytest.mark.parametrize("side", ("left", "right"))
def test_recent_tokens_stay_whatever_their_score(side):
    keys, _, mask = block([C, 6, 2], 3, side)
    scored = EvictionInputs(keys, mask, None, mask, recent=3)
    columns, filled = Random().keep(scored, 5)
    for b, length in enumerate((C, 6, 2)):
        last = mask[b].nonzero().flatten().tolist()[-3:]
        for h in range(H):
            kept = columns[b, h][filled[b, h]].tolist()
            assert kept == sorted(kept) and len(kept) == min(5, length)
            assert kept[-len(last) :] == last


@pytest.mark.parametrize(
    "settings,code,key,value",
    (
        ({"kernel": 4}, "reasoning.bad-setting", "kernel", "is 4; give an odd"),
        ({"kernel": 0}, "reasoning.bad-setting", "kernel", "is 0;"),
        ({"lam": 1.5}, "reasoning.bad-setting", "lambda", "is 1.5; give a number from 0 to 1"),
        ({"threshold": "a"}, "reasoning.bad-setting", "threshold", "is 'a';"),
        ({"retain_ratio": -0.1}, "reasoning.bad-setting", "retain_ratio", "is -0.1;"),
        ({"retain": "lst"}, "reasoning.unknown-direction", "lst", "'last'?"),
    ),
)
def test_bad_settings_are_named(settings, code, key, value, unchecked):
    with refused(code, key) as caught:
        RKVDecoding(**settings)
    assert value in str(caught.value)
