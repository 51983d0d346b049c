"""Rows that are longer than a backbone's positions, before a training comes upon them."""

import io

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import needs_oracle
from refusals import refused
from rich.console import Console

from kava.recipe import registry
from kava.system.progress import Progress
from kava.training import attention
from kava.training.arguments import check_lengths, check_steps
from kava.training.trainer import train
from kava.types import Example

POSITIONS = 40
#: (question, its steps) in tokens.
SHAPES = st.tuples(st.integers(1, 38), st.lists(st.integers(2, 12), max_size=4).map(tuple))


def thinker(family, method="cot", **changes):
    changes = {"train": {"epochs": 9, "learning_rate": 1e-3, "batch_size": 1}, **changes}
    return tiny.wrap(tiny.bare(family, max_position_embeddings=POSITIONS), method, **changes)


def said(reasoner, *examples):
    console = Console(file=io.StringIO(), soft_wrap=True)
    check_lengths(reasoner, reasoner.encoder.rows(examples), console)
    return console.file.getvalue()


def reached(reasoner, example) -> int:
    """The oracle: the loss itself, in every stage; the last position that the backbone is given."""
    seen = []
    hook = reasoner.lm.base_model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(int(inputs["position_ids"].max()) + 1),
        with_kwargs=True,
    )
    batch = tiny.batch(reasoner, [example])
    has_stages = reasoner.method.stage(0.0) is not None
    with torch.no_grad():
        for epoch in range(9 if has_stages else 1):
            staged = reasoner.apply_stage(dict(batch), float(epoch))
            reasoner(counts=reasoner.method.counts(staged), **staged)
    hook.remove()
    return max(seen)


STAGES = {
    "coconut": {"method_options": {"max_stage": 2, "epochs_per_stage": 1}},
    "lotus": {"method_options": {"epochs_per_stage": 1}},
    "icot": {"method_options": {"tokens_per_epoch": 6, "smoothing": None}},
}


@pytest.mark.parametrize("method", registry.names("methods"))
def test_what_the_loss_reaches_is_what_is_refused(method):
    needs_oracle(method)  # one that does not say what it needs may be refused too early
    changes = STAGES.get(method, {})
    roomy, narrow = tiny.reasoner("gpt2", method, **changes), thinker("gpt2", method, **changes)
    outcomes = set()

    @given(SHAPES)
    @settings(max_examples=10)
    def check(shape):
        example = tiny.stepped(*shape)
        wanted = reached(roomy, example)
        outcomes.add(wanted > POSITIONS)
        if wanted <= POSITIONS:
            assert said(narrow, example) == ""
            return
        with refused("training.row-too-long", example.id) as told:
            said(narrow, example)
        assert f"row {example.id} takes {wanted} positions" in str(told.value)

    check()
    assert outcomes == {True, False}


def test_to_the_last_position():
    assert said(thinker("gpt2"), tiny.stepped(13, (12, 8))) == ""  # 1 + 13 + 20 + 6
    with refused("training.row-too-long") as told:
        said(thinker("gpt2"), tiny.stepped(14, (12, 8)))
    assert "41 positions" in str(told.value)


def test_passes_that_only_other_rows_make_do_not_count():
    """A row of Coconut with fewer latents than others stays without, in their passes."""
    options = {"latents_per_stage": 12, "max_stage": 2, "uniform_prob": 1.0}
    narrow = thinker("gpt2", "coconut", num_latents=24, method_options=options)
    few, many = tiny.stepped(18, ()), tiny.stepped(5, (2, 2))
    assert said(narrow, few) == said(narrow, many) == said(narrow, few, many) == ""


def test_what_is_removed_by_chance_may_not_be_removed():
    chance = thinker("gpt2", "icot", method_options={"tokens_per_epoch": 6, "smoothing": 0.1})
    with refused("training.row-too-long", "15-(12, 8)-0") as told:
        said(chance, *[tiny.stepped(15, (12, 8), seed) for seed in range(70)])
    assert "42 positions" in str(told.value)


def test_the_row_is_found_among_many_and_nothing_is_trained(tmp_path):
    rows = [tiny.example(4, 3, seed) for seed in range(150)]
    long = tiny.example(38, 3)
    model = thinker("gpt2", "cot")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with refused("training.row-too-long", "38-3-0") as told:
        train(model, [*rows, long], [], tmp_path, False, Progress("", Console(quiet=True)))
    assert "row 38-3-0 takes " in str(told.value) and " has 40;" in str(told.value)
    assert all(torch.equal(before[name], w) for name, w in model.named_parameters())
    assert not list(tmp_path.iterdir())


def test_where_positions_are_rotations_a_longer_row_is_refused_too():
    examples = [tiny.example(38, 3, seed) for seed in range(3)]
    with refused("training.row-too-long", "38-3-0") as told:
        said(thinker("llama"), *examples)
    assert "(and 2 more rows)" in str(told.value) and "data.too_long=skip" in str(told.value)
    assert said(thinker("llama"), tiny.example(20, 3)) == ""


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path):
    skipping = {"data": {"train": "none", "too_long": "skip"}}
    model = thinker("llama", **skipping)
    short, long = [tiny.example(4, 3, seed) for seed in range(3)], tiny.example(38, 3)
    console = Console(file=io.StringIO(), soft_wrap=True)
    rows = model.encoder.rows([*short, long])
    assert check_lengths(model, rows, console) == rows[:3]
    line = console.file.getvalue()
    assert line.startswith("data.too_long: 1 of 4 ") and "38-3-0 takes" in line
    progress = Progress("", Console(quiet=True))
    measured = train(model, [*short, long], [], tmp_path, False, progress)
    assert (measured["rows"], measured["rows_too_long"]) == (3, 1)
    with refused("training.row-too-long", long.id):  # nothing would be left
        said(model, long)


def test_attention_that_no_memory_holds_is_refused_before_the_first_step(tmp_path, monkeypatch):
    wide = tiny.wrap(tiny.bare("llama"), "cot", train={"steps": 1, "learning_rate": 1e-3})
    short, long = tiny.example(4, 3), tiny.example(200, 3)
    (row,) = wide.encoder.rows([long])
    columns = [len(row.question), len(row.steps) + len(row.answer)]
    together = wide.recipe.train.batch_size
    needed = 5 * together * max(columns[0] ** 2, columns[1] * sum(columns))  # fp32
    for there, fits in ((needed, True), (needed - 1, False), (None, True)):
        monkeypatch.setattr(attention, "free_memory", lambda device, there=there: there)
        if fits:
            attention.check_attention(wide, wide.encoder.rows([short, long]), together)
            continue
        with refused("training.no-memory-for-row", long.id) as told:
            train(wide, [short, long], [], tmp_path, False, Progress("", Console(quiet=True)))
        assert f"a micro-batch of {together} " in str(told.value)
    assert not list(tmp_path.iterdir())


def test_the_free_memory_is_known_here():
    assert attention.free_memory(torch.device("cpu")) > 10_000_000


def test_more_latents_than_positions():
    with refused("training.row-too-long") as told:
        said(thinker("gpt2", "kava", num_latents=60), tiny.example(2, 1))
    assert "with 60 latents" in str(told.value)
    with refused("training.row-too-long") as told:
        said(thinker("llama", "pccot", num_latents=60), tiny.example(2, 1))
    assert "with 60 latents" in str(told.value)


ONE = "after its last step is dropped; set drop_last_step=false"


@pytest.mark.parametrize("method", registry.names("methods"))
@pytest.mark.parametrize(
    "steps, drop, expected", [((), False, "to learn from"), (("w1",), True, ONE)]
)
def test_rows_without_any_step_to_learn_from_are_told(method, steps, drop, expected):
    reasoner = tiny.reasoner("llama", method, drop_last_step=drop)

    def told(*examples):
        console = Console(file=io.StringIO(), soft_wrap=True)
        check_steps(reasoner, examples, reasoner.encoder.rows(examples), console)
        return console.file.getvalue()

    bare = [Example(str(i), "w1 w2", steps, "w3") for i in range(2)]
    assert told(*bare).startswith("data.train: no example has a chain of thought") == (
        method != "no_cot"
    )
    assert expected in told(*bare) or method == "no_cot"
    assert not told(*bare, Example("2", "w1", ("w1", "w2"), "w3"))


def test_a_training_without_steps_says_so(tmp_path):
    console = Console(file=io.StringIO(), soft_wrap=True)
    settings = {"steps": 1, "learning_rate": 1e-3, "batch_size": 1}
    model = tiny.reasoner("llama", "kava", drop_last_step=True, train=settings)
    rows = [Example("0", "w1 w2", ("w1 w2 w3",), "w3")]
    train(model, rows, [], tmp_path, False, Progress("", console))
    assert ONE in console.file.getvalue()
