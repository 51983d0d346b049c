"""Segments, masks, positions and labels: what they are, against their plain definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from tiny import WORDS, reasoner, recipe, tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kava.backbones import masks
from kava.reasoning import batching
from kava.reasoning.batching import Encoder, Row
from kava.recipe import registry
from kava.types import Example

MASKS = st.tuples(st.integers(1, 3), st.integers(0, 6), st.integers(1, 6), st.integers(0, 10**6))
IDS = st.lists(st.integers(1, 50), max_size=6)
ROWS = st.lists(st.tuples(IDS.filter(len), IDS, IDS.filter(len)), min_size=1, max_size=4)


def drawn_masks(rows, past, new, seed):
    """Random masks [rows, past] and [rows, new]: pads anywhere."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(rows, n, generator=draw) < 0.6 for n in (past, new)]


def rows_of(parts):
    return [Row(str(i), q, c, [0] * len(c), a, 1) for i, (q, c, a) in enumerate(parts)]


# -- masks and positions -------------------------------------------------------------------------


@given(MASKS)
def test_a_column_sees_itself_and_the_real_columns_before_it(sizes):
    past, new = drawn_masks(*sizes)
    seen, width = masks.causal_mask(past, new), past.shape[1]
    real = torch.cat((past, new), 1)
    assert seen.shape == (len(past), 1, new.shape[1], width + new.shape[1])
    for b in range(len(past)):
        for i in range(new.shape[1]):
            for j in range(real.shape[1]):
                expected = j == width + i or (j < width + i and bool(real[b, j]))
                assert bool(seen[b, 0, i, j]) == expected


@given(MASKS, st.integers(1, 6))
def test_a_window_counts_real_columns_and_not_pads(sizes, window):
    past, new = drawn_masks(*sizes)
    whole, seen = masks.causal_mask(past, new), masks.causal_mask(past, new, window)
    real, width = torch.cat((past, new), 1), past.shape[1]
    for b in range(len(past)):
        for i in range(new.shape[1]):
            if not new[b, i]:
                continue
            last = [j for j in range(width + i + 1) if real[b, j]][-window:]
            assert seen[b, 0, i].nonzero().flatten().tolist() == last
    assert not (seen & ~whole).any()
    assert (seen.sum(-1) > 0).all()  # a pad sees itself


def test_each_kind_of_layer_gets_its_mask():
    past, new = drawn_masks(2, 4, 5, 0)
    kinds = {"full_attention": None, "sliding_attention": 2}
    found = masks.layer_masks(past, new, kinds, torch.float32)
    assert found.keys() == kinds.keys()
    for kind, window in kinds.items():
        assert torch.equal(found[kind][..., :9] == 0, masks.causal_mask(past, new, window))
    one = masks.layer_masks(past, new, 3, torch.float32)
    assert torch.equal(one[..., :9] == 0, masks.causal_mask(past, new, 3))


@given(MASKS)
def test_a_position_is_the_number_of_real_columns_before(sizes):
    past, new = drawn_masks(*sizes)
    found, real = masks.positions(past, new), torch.cat((past, new), 1)
    for b in range(len(past)):
        for i in range(new.shape[1]):
            if new[b, i]:
                assert found[b, i] == real[b, : past.shape[1] + i].sum()
    assert (found >= 0).all()


# -- segments and labels -------------------------------------------------------------------------


@given(st.lists(IDS, min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_padding_keeps_every_token_on_its_side(sequences, side):
    ids, mask = masks.pad(sequences, side, value=99)
    assert ids.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    for row, real, sequence in zip(ids, mask, sequences, strict=True):
        gap = ids.shape[1] - len(sequence)
        pads = [99] * gap
        assert row.tolist() == (pads + sequence if side == "left" else sequence + pads)
        assert real.tolist() == [t != 99 for t in row.tolist()]


def spelled(data, name, segments):
    """[(token before, label)] per row, from the batch's flat label indices; Q stands for 0."""
    tokens = torch.cat((torch.zeros_like(data["question"][:, :1]), *(data[s] for s in segments)), 1)
    pairs = [[] for _ in data["ids"]]
    for r, c, t in zip(
        *(data[f"{name}_{part}"].tolist() for part in ("rows", "columns", "ids")), strict=True
    ):
        pairs[r].append((tokens[r, c].item(), t))
    return pairs


@given(ROWS)
def test_every_token_after_the_question_is_predicted_from_the_real_one_before_it(parts):
    data = batching.collate(rows_of(parts), pad_id=99)
    for (_, steps, answer), pairs in zip(
        parts, spelled(data, "teacher", ("steps", "answer")), strict=True
    ):
        written = steps + answer
        assert pairs == list(zip([0, *written[:-1]], written, strict=True))
    for (_, _, answer), pairs in zip(parts, spelled(data, "answer", ("answer",)), strict=True):
        assert pairs == list(zip([0, *answer[:-1]], answer, strict=True))


@given(ROWS)
def test_questions_end_and_other_segments_begin_at_one_column(parts):
    data = batching.collate(rows_of(parts), pad_id=99)
    for i, (question, steps, answer) in enumerate(parts):
        assert data["question"][i, -len(question) :].tolist() == question
        assert data["steps"][i, : len(steps)].tolist() == steps
        assert data["answer"][i, : len(answer)].tolist() == answer
        for name, ids in (("question", question), ("steps", steps), ("answer", answer)):
            assert data[f"{name}_mask"][i].sum() == len(ids)


@given(ROWS, st.integers(1, 5))
def test_counts_are_the_denominators(parts, latents):
    rows = rows_of(parts)
    data = batching.collate(rows, 0)
    read = recipe(num_latents=latents, latent_readout={"weight": 1.0})
    method = registry.find("methods", "kava")(read)
    found = method.counts(method.apply_stage(data, 0.0, None))
    slots = sum(min(len(r.steps), latents) for r in rows)
    assert {name: int(count) for name, count in found.items()} == {
        "teacher": sum(len(r.steps) + len(r.answer) for r in rows),
        "answer": sum(len(r.answer) for r in rows),
        "rows": len(rows),
        "slots": slots,
        "readout": slots,
    }
    filled = registry.find("methods", "kava")(recipe(num_latents=latents, short_traces="zeros"))
    assert filled.counts(data)["slots"] == len(rows) * latents


# -- text to tokens ------------------------------------------------------------------------------

STORY = Example("1", "w1 w2", ("<< 4 - 2 = 2 >>", "<< 2 * 3 = 6 >>"), "6")


def words(ids):
    return tokenizer().convert_ids_to_tokens(ids)


def test_a_row_is_question_steps_and_answer_with_eos():
    row = Encoder(tokenizer(), drop_last_step=False).row(STORY)
    assert words(row.question) == ["<s>", "w1", "w2"]
    assert words(row.steps) == [
        "<<",
        "4",
        "-",
        "2",
        "=",
        "2",
        ">>",
        "<<",
        "2",
        "*",
        "3",
        "=",
        "6",
        ">>",
    ]
    assert words(row.answer) == ["The", "answer", "is", ":", "6", "</s>"]


def test_an_answer_starts_after_a_blank_that_is_a_token_of_its_own():
    assert Encoder(tokenizer(), False).row(STORY).answer_start == 4
    signs = ["<unk>", "</s>", " ", ":", "-", "7", "The", "answer", "is"]
    model = models.WordLevel({sign: i for i, sign in enumerate(signs)}, "<unk>")
    blanks = Tokenizer(model)
    blanks.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s|\d|\w+|[^\w\s]"), "isolated")
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=blanks, eos_token="</s>"), False)
    for answer in ("7", "-7"):
        row = encoder.row(Example("1", "7", (), answer))
        before, after = row.answer[: row.answer_start], row.answer[row.answer_start : -1]
        assert "".join(signs[token] for token in before) == "The answer is: "
        assert "".join(signs[token] for token in after) == answer


def test_the_last_step_can_be_dropped_down_to_nothing():
    encoder = Encoder(tokenizer(), drop_last_step=True)
    assert words(encoder.row(STORY).steps) == ["<<", "4", "-", "2", "=", "2", ">>"]
    for steps in (("<< 1 = 1 >>",), ()):
        assert encoder.row(Example("1", "w1", steps, "1")).steps == []


def test_sentences_are_parted_by_a_blank_and_equations_touch():
    class Letters:
        """A tokenizer whose tokens are characters."""

        eos_token_id, bos_token_id = 0, None

        def __call__(self, texts, **_):
            return {"input_ids": [[ord(c) for c in text] for text in texts]}

        def convert_ids_to_tokens(self, ids):
            return [chr(i) for i in ids]

        def decode(self, ids):
            return "".join(map(chr, ids))

    def steps(*texts):
        row = Encoder(Letters(), drop_last_step=False).row(Example("1", "q", texts, "5"))
        return "".join(map(chr, row.steps)), row

    assert steps("<<1=1>>", "<<2=2>>")[0] == "<<1=1>><<2=2>>"
    assert steps("One is one.", "Two too.")[0] == " One is one. Two too."
    row = steps()[1]
    assert "".join(map(chr, row.answer[:-1])) == "The answer is: 5"
    assert "".join(map(chr, row.question)) == "q"  # no BOS where the tokenizer has none


@pytest.fixture
def thinker():
    return reasoner()


@given(st.lists(st.sampled_from([*WORDS, "<bot>", "</s>", "<latent>", "<pad>"]), max_size=8))
def test_text_never_becomes_a_special_token(thinker, texts):
    text = " ".join(texts)
    row = thinker.encoder.row(Example("1", text, ("<< " + text,), text))
    special = set(thinker.tokenizer.all_special_ids) - {thinker.tokenizer.unk_token_id}
    assert not special & set(row.question[1:] + row.steps + row.answer[:-1])


def test_a_tokenizer_without_eos_is_refused():
    broken = tokenizer()
    broken.eos_token = None
    with refused("reasoning.no-eos", "eos_token"):
        Encoder(broken, drop_last_step=False)
