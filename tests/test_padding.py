"""What shares a batch with a question, and how far it is padded, never changes its answer."""

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import needs_oracle
from tiny import batch, example, reasoner

from kava.backbones import masks
from kava.reasoning import batching
from kava.recipe import registry

METHODS = registry.names("methods")
TOLERANCE = 1e-4
LENGTHS = st.tuples(st.integers(1, 12), st.integers(0, 9), st.sampled_from(["7", "1 2", "3 4 5"]))


@pytest.fixture
def thinker(pair):
    return reasoner(*pair)


def make(mates, first_seed=0):
    return [example(q, c, first_seed + i, answer) for i, (q, c, answer) in enumerate(mates)]


def widen(data, left, right):
    """Pad columns holding arbitrary tokens: left of the question, right of steps and answer."""
    data = dict(data)
    data["step_of"] = F.pad(data["step_of"], (0, right), value=-1)
    for name, amount in (("question", (left, 0)), ("steps", (0, right)), ("answer", (0, right))):
        data[name] = F.pad(data[name], amount, value=21)
        data[f"{name}_mask"] = F.pad(data[f"{name}_mask"], amount, value=False)
    written = [torch.cat((data[f"steps{end}"], data[f"answer{end}"]), 1) for end in ("", "_mask")]
    labels = {
        "teacher": batching.next_token_labels(*written),
        "answer": batching.next_token_labels(data["answer"], data["answer_mask"]),
    }
    for name, found in labels.items():
        data |= {f"{name}_{part}": getattr(found, part) for part in ("rows", "columns", "ids")}
    return data


def supervised_rows(thinker, data):
    """The batch row of every logit that a training step computes, in the order of its calls."""
    method = thinker.recipe.method
    needs_oracle(method)
    if method == "lotus":
        return [data["left"]["teacher_rows"], data["readout_rows"], data["teacher_rows"]]
    if method in ("cot", "icot", "coconut"):
        return [data["teacher_rows"]]
    rows = (
        [data["answer_rows"]] if method == "no_cot" else [data["answer_rows"], data["teacher_rows"]]
    )
    if method == "aligned":
        rows.append(data["readout_rows"])
    if method == "mux":
        rows.append(data["multiplex_rows"])
    if method == "simcot":
        of, mask = data["decoder_latents"], data["decoder_mask"]
        for i in range(thinker.recipe.num_latents):
            which = (mask & (of == i)[:, None]).nonzero(as_tuple=True)[0]
            rows.append(data["decoder_rows"][which])
    return rows


def label_logits(thinker, data, row):
    """Logits behind every label of one row, as the training step computes them."""
    data = thinker.apply_stage(data)
    honest, of, seen = thinker.logits, iter(supervised_rows(thinker, data)), []

    def spy(hidden):
        scores = honest(hidden)
        seen.append(scores[next(of) == row])
        return scores

    thinker.logits = spy
    try:
        with torch.no_grad():
            thinker(counts=thinker.method.counts(data), **data)
    finally:
        del thinker.logits
    assert next(of, None) is None
    return torch.cat(seen)


def training_gap(thinker, examples, row, left=0, right=0):
    alone = label_logits(thinker, batch(thinker, [examples[row]]), 0)
    together = label_logits(thinker, widen(batch(thinker, examples), left, right), row)
    return (alone - together).abs().max().item()


@torch.no_grad()
def first_logits(thinker, questions, left=0):
    """Logits [B, V] of the first answer token, and the thinking they follow."""
    ids, mask = masks.pad([thinker.encoder.question(q) for q in questions], "left", 0)
    ids, mask = F.pad(ids, (left, 0), value=21), F.pad(mask, (left, 0), value=False)
    reasoning = thinker.method.think(thinker, ids, mask)
    prompt = torch.ones_like(reasoning.prompt, dtype=torch.bool)
    output, _ = thinker.extend(reasoning.cache, thinker.embed(reasoning.prompt), prompt)
    return thinker.logits(output.last_hidden_state[:, -1]), reasoning


def answers(thinker, reasoning, count=6):
    ids = thinker.continue_from(reasoning, count)
    return [row[:n].tolist() for row, n in zip(ids, thinker.generated_lengths(ids), strict=True)]


def generation_gap(thinker, examples, row, left=0):
    """The largest difference of the first logits, and what was thought alone and together."""
    alone, own = first_logits(thinker, [examples[row].question])
    together, shared = first_logits(thinker, [e.question for e in examples], left)
    return (alone[0] - together[row]).abs().max().item(), own, shared


MATES, ROW = st.lists(LENGTHS, min_size=1, max_size=4), st.integers(0, 11)
UNEVEN = [(2, 1, "7"), (11, 9, "3 4 5"), (5, 0, "1 2")]


@settings(max_examples=5)
@given(MATES, ROW, st.integers(0, 9), st.integers(0, 5))
@hypothesis.example(UNEVEN, 0, 3, 2)
def test_training_states_do_not_depend_on_batch_or_padding(thinker, mates, row, left, right):
    assert training_gap(thinker, make(mates), row % len(mates), left, right) < TOLERANCE


@settings(max_examples=3)
@given(MATES, ROW, st.integers(0, 9))
@hypothesis.example(UNEVEN, 0, 3)
def test_generation_does_not_depend_on_batch_or_padding(thinker, mates, row, left):
    examples, row = make(mates), row % len(mates)
    gap, alone, together = generation_gap(thinker, examples, row, left)
    assert gap < TOLERANCE
    assert answers(thinker, alone)[0] == answers(thinker, together)[row]


def test_questions_as_text_are_answered_as_if_alone(every_pair):
    thinker = reasoner(*every_pair)
    questions = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11"]
    together = answers(thinker, thinker.think(questions))
    assert together == [answers(thinker, thinker.think([q]))[0] for q in questions]


EXAMPLES = make(UNEVEN[:2])


def test_a_dropped_mask_would_be_seen(thinker, monkeypatch):
    honest = masks.causal_mask
    monkeypatch.setattr(
        masks,
        "causal_mask",
        lambda past, mask, *window: honest(torch.ones_like(past), torch.ones_like(mask), *window),
    )
    assert training_gap(thinker, EXAMPLES, 0) > 0.1
    assert generation_gap(thinker, EXAMPLES, 0)[0] > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_positions_that_count_pads_would_be_seen(method, monkeypatch):
    thinker = reasoner("gpt2", method)  # rotary embeddings forgive a shift of everything
    honest = masks.positions
    monkeypatch.setattr(
        masks,
        "positions",
        lambda past, mask: honest(torch.ones_like(past), torch.ones_like(mask)),
    )
    assert training_gap(thinker, EXAMPLES, 0) > 0.1
    assert generation_gap(thinker, EXAMPLES, 0)[0] > 0.1
