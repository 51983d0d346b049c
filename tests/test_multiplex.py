"""Spans of the chain of thought are drawn fairly, and what they weigh is MUX's equation."""

from collections import Counter
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch, example, reasoner

from kava.reasoning.losses.multiplex import Spans, cut_into_spans, multiplex_loss, random_cuts

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


def drawn(lengths, spans, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    return random_cuts(lengths, spans, lambda: torch.rand(len(lengths), generator=generator))


def test_every_way_to_cut_is_as_likely_as_every_other():
    cuts = drawn([5] * 6_000, 3)
    assert cuts.shape == (6_000, 4)
    found = Counter(tuple(row) for row in cuts.int().tolist())
    assert len(found) == 6  # two cuts at four places
    assert all(abs(n / 6_000 - 1 / 6) < 0.02 for n in found.values())


@given(LENGTHS, st.integers(0, 6), st.integers(0, 99))
def test_there_is_a_span_for_each_latent_or_for_each_token(lengths, spans, seed):
    cuts = drawn(lengths, spans, seed)
    assert cuts.shape == (len(lengths), max(0, max(lengths) - 1))
    for row, length in zip(cuts, lengths, strict=True):
        assert row.sum() == max(0, min(spans, length) - 1)
        assert not row[max(0, length - 1) :].any()  # nothing is cut after the last token


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 6), st.integers(0, 99), st.sampled_from([0.5, 0.9, 1.0]))
def test_spans_are_the_chain_of_thought_in_order(lengths, spans, seed, decay):
    width = max(lengths) + 1  # one more column of padding than the longest needs
    steps = torch.randint(0, 3, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    cuts = drawn(lengths, spans, seed)
    found = cut_into_spans(steps, mask, cuts, decay)
    expected = []  # (row, latent, ids, weights), by loops
    for row, length in enumerate(lengths):
        ends = [c + 1 for c in range(length - 1) if cuts[row, c]] + [length] * (length > 0)
        begin = 0
        for latent, end in enumerate(ends):
            powers = [decay**j for j in range(end - begin)]
            weights = [p / sum(powers) for p in powers]
            expected.append((row, latent, steps[row, begin:end].tolist(), weights))
            begin = end
    ours = []
    for n in range(len(found.rows)):
        ids, weights = (
            found.ids[found.span_of == n].tolist(),
            found.weights[found.span_of == n].tolist(),
        )
        ours.append((int(found.rows[n]), int(found.latents[n]), ids, pytest.approx(weights)))
    assert expected == ours


def test_a_token_that_occurs_twice_is_one_entry_of_the_target():
    thinker = reasoner()
    spans = Spans(
        rows=torch.tensor([0, 0]), latents=torch.tensor([0, 1]),
        span_of=torch.tensor([0, 0, 0, 1]),
        ids=torch.tensor([7, 9, 7, 3]), weights=torch.tensor([0.5, 0.3, 0.2, 1.0]),
    )  # fmt: skip
    hidden = torch.randn(2, 32)
    dense = torch.zeros(2, thinker.lm.config.vocab_size)
    dense[0, 7], dense[0, 9], dense[1, 3] = 0.7, 0.3, 1.0
    for tau in (1.0, 0.3):
        with torch.no_grad():
            scores = (thinker.logits(hidden) / tau).log_softmax(-1)
            ours = multiplex_loss(thinker, hidden, spans, tau, torch.tensor(2))
        torch.testing.assert_close(ours, F.kl_div(scores, dense, reduction="sum") / 2)


def test_a_head_that_predicts_the_target_has_no_loss(monkeypatch):
    thinker = reasoner("llama", "mux")
    data = thinker.apply_stage(batch(thinker, [example(4, 9)]))
    q = torch.full((len(data["multiplex_rows"]), thinker.lm.config.vocab_size), 1e-9)
    q.index_put_(
        (data["multiplex_span_of"], data["multiplex_ids"]),
        data["multiplex_weights"],
        accumulate=True,
    )
    spans = Spans(*(data[f"multiplex_{field.name}"] for field in fields(Spans)))
    monkeypatch.setattr(thinker, "logits", lambda _: q.log())
    loss = multiplex_loss(thinker, torch.zeros(len(q), 32), spans, 1.0, torch.tensor(len(q)))
    assert abs(loss) < 1e-6


def test_what_is_drawn_depends_on_the_example_and_the_draw_alone():
    thinker = reasoner("llama", "mux")
    examples = [example(4, 9), example(3, 7, 1)]

    def spans(chosen, draw):
        data = thinker.apply_stage(batch(thinker, chosen), draw=draw)
        span, row_of = data["multiplex_span_of"], data["multiplex_rows"]
        return [span[row_of[span] == row].tolist() for row in range(len(chosen))]

    first, second = spans(examples, 5)
    assert spans(examples[:1], 5) == [first]
    assert spans(examples[1:], 6) == [[n - max(first) - 1 for n in second]]
    assert len({tuple(spans(examples[:1], draw)[0]) for draw in range(20)}) > 5
