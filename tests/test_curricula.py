"""Stages: what is removed when, what takes its place, and what the optimiser forgets."""

import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import generate, prefix, step, to_textbook
from refusals import refused
from rich.console import Console
from test_step import assert_same_gradients, assert_same_terms, gradients, spans_of
from tiny import batch, example, reasoner, stepped

import kava.training.callbacks
import kava.training.smoke
import kava.training.trainer
from kava.reasoning import batching
from kava.reasoning.batching import Row
from kava.recipe import registry, schema
from kava.runs.folder import read_metrics
from kava.training.run import train_run
from kava.training.smoke import shrink

EXAMPLES = [
    stepped(4, (3, 2, 4)), stepped(8, (2, 5), 1, "1 2"), example(3, 0, 2), stepped(5, (4,), 3),
]  # fmt: skip
IDS = st.lists(st.integers(1, 50), max_size=4)
TRACES = st.lists(st.tuples(st.lists(IDS.filter(len), max_size=4), st.integers(0, 9)), min_size=1)


def test_where_nothing_is_drawn_no_generator_is_made(monkeypatch):
    made, plain = [], torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda: made.append(1) or plain())
    data = [example(4, 9), example(2, 3, 1)]
    for method, drawn in (("kava", 0), ("icot", len(data))):
        made.clear()
        thinker = reasoner("llama", method)
        thinker.apply_stage(batch(thinker, data), 0.3)
        assert len(made) == drawn


def draws(seed=0, rows=4_000):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.rand(rows, generator=generator, dtype=torch.float64)


def row(i, steps):
    numbers = [n for n, one in enumerate(steps) for _ in one]
    return Row(str(i), [1], [t for one in steps for t in one], numbers, [7, 8], 1)


@given(TRACES)
def test_without_its_first_tokens_a_batch_is_that_of_shorter_rows(traces):
    rows = [row(i, steps) for i, (steps, _) in enumerate(traces)]
    gone = torch.tensor([n for _, n in traces])
    cut = [
        Row(r.id, r.question, r.steps[n:], r.step_of[n:], r.answer, r.answer_start)
        for r, (_, n) in zip(rows, traces, strict=True)
    ]
    found, expected = (
        batching.drop_first_tokens(batching.collate(rows, 0), gone),
        batching.collate(cut, 0),
    )
    for name, value in expected.items():
        if name == "steps":  # pads may hold anything
            value, found[name] = value * expected["steps_mask"], found[name] * found["steps_mask"]
        same = torch.equal(found[name], value) if name != "ids" else found[name] == value
        assert same, name


@given(TRACES, st.integers(0, 5))
def test_tokens_of_the_first_steps(traces, count):
    data = batching.collate([row(i, steps) for i, (steps, _) in enumerate(traces)], 0)
    found = batching.tokens_of_steps(data, torch.full((len(traces),), count))
    assert found.tolist() == [sum(map(len, steps[:count])) for steps, _ in traces]


# -- iCoT ----------------------------------------------------------------------------------------


def removed(thinker, epoch, seed=0):
    data = batch(thinker, EXAMPLES)
    left = thinker.method.apply_stage(data, epoch, draws(seed))
    return (data["steps_mask"].sum(1) - left["steps_mask"].sum(1)).tolist()


def icot(**options):
    return reasoner("llama", "icot", method_options={"smoothing": None, **options})


def test_tokens_vanish_from_the_left_at_even_distances():
    thinker = icot(tokens_per_epoch=8)
    assert removed(thinker, 0) == [0, 0, 0, 0]
    assert removed(thinker, 0.124) == [0, 0, 0, 0]
    assert removed(thinker, 0.125) == [1, 1, 0, 1]
    assert removed(thinker, 0.76) == [6, 6, 0, 4]
    assert removed(thinker, math.inf) == [9, 7, 0, 4]
    data = batch(thinker, EXAMPLES)
    left = thinker.method.apply_stage(data, 0.25, draws())
    assert left["steps"][0, :7].tolist() == data["steps"][0, 2:9].tolist()


def test_beyond_a_number_everything_goes_at_once():
    thinker = icot(tokens_per_epoch=8, remove_all_beyond=3)
    assert removed(thinker, 2 / 8) == [2, 2, 0, 2]
    assert removed(thinker, 3 / 8) == [9, 7, 0, 4]
    assert thinker.method.last_stage_at(100) == 3 / 8
    assert icot(tokens_per_epoch=8).method.last_stage_at(100) == 100 / 8


def test_smoothing_removes_more_by_chance_as_exp_of_minus_lambda():
    rate, number = 1.0, 4_000
    thinker = reasoner("llama", "icot", method_options={"smoothing": rate, "tokens_per_epoch": 1})
    data = batching.collate([Row("x", [1], [5] * 20, [0] * 20, [7], 1)] * number, 0)
    left = thinker.method.apply_stage(data, 2, draws())["steps_mask"].sum(1)
    found = Counter((20 - 2 - left).tolist())
    for o in range(5):
        share = (1 - math.exp(-rate)) * math.exp(-rate * o)
        assert found[o] / number == pytest.approx(share, abs=0.025)
    assert min(found) == 0


def test_what_is_drawn_depends_on_the_draw_alone():
    thinker = reasoner("llama", "icot", method_options={"smoothing": 0.3})
    data = batch(thinker, EXAMPLES * 5)

    def left(draw):
        torch.rand(1)
        return thinker.apply_stage(data, 0.2, draw)["steps_mask"].sum(1).tolist()

    assert left(1) == left(1) != left(2)


@pytest.mark.parametrize("gone", (1, 3))
def test_icot_in_the_middle_equals_the_slow_reference(gone):
    thinker = icot(tokens_per_epoch=1)
    compare(thinker, gone, epoch=float(gone))


# -- Coconut -------------------------------------------------------------------------------------


def coconut(**options):
    return reasoner(
        "llama", "coconut", method_options={"max_stage": 2, "epochs_per_stage": 1, **options}
    )


def compare(thinker, stage, epoch):
    slow = to_textbook(copy.deepcopy(thinker))
    data = thinker.apply_stage(batch(thinker, EXAMPLES), epoch)
    ours = thinker(counts=thinker.method.counts(data), **data)
    theirs = step(slow, [thinker.encoder.row(e) for e in EXAMPLES], stage, spans_of(data))
    assert_same_terms(ours, theirs)
    assert_same_gradients(gradients(thinker, ours["loss"]), gradients(slow, theirs["loss"]))


def test_stages_begin_where_the_epochs_say():
    method = coconut(epochs_per_stage=3).method
    assert [method.stage(e) for e in (0, 2.99, 3, 5.9, 6, 8.9, 9, 50, math.inf)] == [
        0, 0, 1, 1, 2, 2, 3, 3, 3,
    ]  # fmt: skip
    assert method.last_stage_at(10) == 9


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_each_stage_equals_the_slow_reference(stage):
    compare(coconut(), stage, epoch=stage + 0.5)


def test_rows_in_different_stages_are_as_if_alone():
    thinker = coconut(uniform_prob=1.0)
    data = thinker.apply_stage(batch(thinker, EXAMPLES), 2, draw=3)
    lengths = data["latents"].tolist()
    assert len(set(lengths)) > 1
    with torch.no_grad():
        together = thinker(counts=thinker.method.counts(data), **data)["loss"]
        total = 0
        for i, (one, latents) in enumerate(zip(EXAMPLES, lengths, strict=True)):
            alone = batch(thinker, [one])
            gone = int(alone["steps_mask"].sum() - data["steps_mask"][i].sum())
            alone = batching.drop_first_tokens(alone, torch.tensor([gone]))
            alone |= {"latents": torch.tensor([latents]), "most_latents": latents}
            counts = {"teacher": torch.tensor(1)}
            total += thinker.method.loss(thinker, alone, counts)["loss"]
    torch.testing.assert_close(together, total / data["teacher_ids"].numel())


def test_mixed_stages_are_drawn_from_none_to_all_steps_of_a_row():
    thinker = coconut(uniform_prob=0.5)
    seen = [Counter() for _ in EXAMPLES]
    for draw in range(400):
        data = thinker.apply_stage(batch(thinker, EXAMPLES), 1.5, draw)
        for counter, left in zip(seen, data["steps_mask"].sum(1).tolist(), strict=True):
            counter[left] += 1
    # Row 0 (steps of 3, 2, 4 tokens): stage 1 half of the time and a quarter of the other half,
    # stages 0, 2, and the last one with nothing left.
    assert sorted(seen[0]) == [0, 4, 6, 9]
    assert seen[0][6] / 400 == pytest.approx(0.5 + 0.5 / 4, abs=0.08)
    assert seen[0][0] / 400 == pytest.approx(0.5 / 4, abs=0.06)
    assert sorted(seen[1]) == [0, 5, 7] and sorted(seen[2]) == [0] and sorted(seen[3]) == [0, 4]


def test_without_mixing_all_rows_have_the_same_latents():
    thinker = coconut()
    for epoch, latents in ((1.5, 2), (2.5, 4), (3.5, 4)):
        data = thinker.apply_stage(batch(thinker, EXAMPLES), epoch)
        assert data["latents"].tolist() == [latents] * len(EXAMPLES)


def test_latents_must_be_those_of_the_last_stage():
    with refused("reasoning.uneven-stages", "num_latents") as told:
        reasoner("llama", "coconut", num_latents=5, method_options={})
    for value in ("num_latents 5", "latents_per_stage 2", "max_stage 3"):
        assert value in str(told.value)


# -- LOTUS ---------------------------------------------------------------------------------------


LOTUS = {"num_latents": 9, "kv": {"weight": 0.0}}
WAYS = {
    "paper": {},
    "L_KV": {"kv": {"weight": 0.5, "loss": "l1"}},
    "more loops than blocks": {"num_iterations": 6, "multiplex": {"weight": 0.7}},
    "fewer loops than blocks": {"num_iterations": 2},
    "the file for 1B": {
        "latent_readout": {"weight": 0.3, "width": 3, "target": "slot"},
        "method_options": {"epochs_per_stage": 2, "readout_after": "own_loop"},
    },
    "each block after its own loop, with L_KV": {
        "num_iterations": 6, "kv": {"weight": 0.5},
        "method_options": {"epochs_per_stage": 2, "readout_after": "own_loop"},
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_each_stage_of_lotus_equals_the_slow_reference(stage, way):
    usual = {"num_iterations": 3, "method_options": {"epochs_per_stage": 2}}
    thinker = reasoner("llama", "lotus", **{**LOTUS, **usual, **WAYS[way]})
    compare(thinker, stage, epoch=2 * (stage + 0.5))


def test_nothing_is_matched_before_there_are_latents():
    thinker = reasoner("llama", "lotus", **{**LOTUS, **WAYS["L_KV"]})
    data = thinker.apply_stage(batch(thinker, EXAMPLES), 0.0)
    terms = thinker(counts=thinker.method.counts(data), **data)
    assert terms["kv"] == terms["readout"] == 0 and terms["teacher_ce"] > 0
    gradients(thinker, terms["loss"])
    assert thinker.special_tokens["latent"].grad.eq(0).all()


def test_blocks_come_in_one_by_one():
    method = reasoner("llama", "lotus", **LOTUS, method_options={"epochs_per_stage": 2}).method
    assert [method.stage(e) for e in (0, 1.9, 2, 3.9, 4, 5.9, 6, 99, math.inf)] == [
        0, 0, 1, 1, 2, 2, 3, 3, 3,
    ]  # fmt: skip
    assert method.last_stage_at(10) == 6


@pytest.mark.parametrize(
    "loops,expected", ((3, [0, 1, 2, 3]), (6, [0, 2, 4, 6]), (2, [0, 1, 2, 2]), (0, [0, 0, 0, 0]))
)
def test_each_block_takes_its_share_of_the_loops(loops, expected):
    method = reasoner("llama", "lotus", **LOTUS, num_iterations=loops).method
    assert [method.loops(stage) for stage in range(4)] == expected


def test_after_the_latents_lotus_writes_freely():
    thinker = reasoner("llama", "lotus", num_latents=6)
    questions = [example(4, 0).question, example(9, 0, 1).question]
    reasoning = thinker.think(questions)
    asked = thinker.answer(reasoning, 5)
    for i, question in enumerate(questions):
        ids = thinker.encoder.question(question)
        with torch.no_grad():
            start = prefix(thinker, ids, thinker.encoder.prompt)
            tokens = generate(thinker, start, 5, thinker.tokenizer.eos_token_id)
        assert asked[i].text == thinker.tokenizer.decode(tokens, skip_special_tokens=True)
        # The first token comes with the pass of <eot>; each other one takes a pass of its own.
        loops = thinker.recipe.num_iterations
        assert asked[i].forward_passes == loops + len(tokens) - 1
    several = thinker.answer(reasoning, 5, num_beams=2, num_return_sequences=2)
    firsts = [one.text.split()[0] for one in several]
    assert firsts == [text.split()[0] for text in (asked[0].text, asked[0].text, asked[1].text,
                                                   asked[1].text)]  # fmt: skip


@pytest.mark.parametrize(
    "changes,code,key,values",
    (
        (
            {"num_latents": 7},
            "reasoning.uneven-blocks",
            "num_latents",
            ("num_latents 7", "latent_readout.width 3"),
        ),
        ({"latent_readout": {"width": None}}, "reasoning.no-width", "latent_readout.width", ()),
    ),
)
def test_lotus_refuses_what_it_cannot_do(changes, code, key, values):
    with refused(code, key) as told:
        reasoner("llama", "lotus", **changes)
    assert all(value in str(told.value) for value in values)


# -- in a training -------------------------------------------------------------------------------

STAGED = {
    "icot": {"method_options": {"tokens_per_epoch": 100, "smoothing": 1.0}},
    "coconut": {
        "num_latents": 4,
        "method_options": {
            "max_stage": 2, "epochs_per_stage": 0.125, "latents_per_stage": 2, "uniform_prob": 0.4,
        },
    },
    "lotus": {
        "num_latents": 12, "num_iterations": 2, "latent_readout": {"weight": 0.1, "width": 4},
        "method_options": {"epochs_per_stage": 0.125},
    },
}  # fmt: skip


def resolved(backbone, method, **changes):
    tree = {
        "method": method, "backbone": str(backbone), "adapter": "full", **STAGED[method],
        "data": {"train": "synthetic", "train_rows": 64},
        "train": {
            "steps": 12, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3,
            "log_every": 1, "save_every": 4,
        },
    }  # fmt: skip
    return schema.validate(schema.merge(tree, changes), "test")


def trained(recipe_, folder, monkeypatch, resume=False, stop_after=None):
    """Run in this process; returns the trainer. `stop_after` breaks off after a step."""
    made = []

    class Kept(kava.training.trainer.StepTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    def end(self, args, state, control, **_):
        if state.global_step == stop_after:
            raise InterruptedError

    monkeypatch.setattr(kava.training.trainer, "StepTrainer", Kept)
    monkeypatch.setattr(kava.training.callbacks.Record, "on_step_begin", end, raising=False)
    train_run(recipe_, folder, Console(quiet=True), resume, "cpu")
    return made[0]


def logged(folder):
    timed = {"tokens_per_second", "seconds_per_step"}
    return [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(folder)]


@pytest.mark.parametrize("method", STAGED)
def test_interrupted_and_resumed_equals_uninterrupted(method, backbone, tmp_path, monkeypatch):
    wanted = resolved(backbone, method)
    trained(wanted, tmp_path / "whole", monkeypatch)
    with pytest.raises(InterruptedError):
        trained(wanted, tmp_path / "cut", monkeypatch, stop_after=9)
    trained(wanted, tmp_path / "cut", monkeypatch, resume=True)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    parts = [tmp_path / n / "checkpoint/backbone/model.safetensors" for n in ("cut", "whole")]
    assert parts[0].read_bytes() == parts[1].read_bytes()


@pytest.mark.parametrize("reset", (True, False))
def test_the_optimiser_forgets_at_each_new_stage(reset, backbone, tmp_path, monkeypatch):
    # Stages of coconut begin at steps 0, 2, 4 and 6 of 12 (16 steps are an epoch).
    wanted = resolved(backbone, "coconut", method_options={"reset_optimizer": reset})
    trainer = trained(wanted, tmp_path / "run", monkeypatch)
    ages = {float(s["step"]) for s in trainer.optimizer.state.values()}
    assert max(ages) == (6 if reset else 12)
    stages = [r["stage"] for r in read_metrics(tmp_path / "run")]
    assert stages == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3]


def test_a_training_that_ends_too_early_is_refused(backbone, tmp_path, monkeypatch):
    wanted = resolved(backbone, "coconut", method_options={"epochs_per_stage": 3})
    with refused("training.too-short", "method_options") as told:
        trained(wanted, tmp_path / "run", monkeypatch)
    for value in ("'coconut'", "9.00 epochs", "0.75"):
        assert value in str(told.value)


@pytest.mark.parametrize("method", registry.names("methods"))
def test_a_smoke_run_reaches_the_last_stage(method, backbone):
    tree = {
        "method": method, "backbone": "x", **STAGED.get(method, {}),
        "data": {"train": "synthetic"}, "train": {"epochs": 30, "learning_rate": 1e-3},
    }  # fmt: skip
    small = shrink(schema.validate(tree, "test"), backbone)
    found = registry.find("methods", method)(small)
    ends = (small.train.steps - 1) * small.train.batch_size / small.data.train_rows
    assert found.last_stage_at(kava.training.smoke.MAX_TOKENS) <= ends
    changed = STAGED.get(method, {}).get("method_options", {}).keys()
    assert small.method_options.keys() == found.Options().model_dump().keys() >= changed
