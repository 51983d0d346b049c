"""`kava bench matrix`: its arithmetic against steps that are really counted, and slow packing."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoConfig, LlamaForCausalLM

from kava import adapter as adapters
from kava import backbone as backbones
from kava import batching, memory
from kava import disk as disks
from kava.bench import flops, packing
from kava.bench.packing import Job
from kava.bench.shapes import random_reasoner
from kava.bench.whole import Wholes
from kava.cost import ANSWER, QUESTION, REASONING
from kava.data import load_examples
from kava.model import Reasoner
from kava.recipe import Recipe, load_recipe
from kava.run import train_run
from kava.smoke import tiny_backbone

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "results" / "bench"
SHARED = ROOT.parent / "shared" / "data"
checkout = pytest.mark.skipif(not BENCH.is_dir(), reason="part of a checkout only")
TINY = (
    "llama:hidden_size=16,num_hidden_layers=2,intermediate_size=24,num_attention_heads=4,"
    "num_key_value_heads=2,vocab_size=40"
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone("llama", folder)
    return folder


def lines(count):
    """Rows of many lengths."""
    return [
        {
            "question": "Ann had " + "4 pens and " * i + "7 ?",
            "steps": [f"<<{n}+1={n + 1}>>" for n in range(1 + i % 3)],
            "answer": str(5**i),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines(3)), encoding="utf-8")
    return file


#: Stages begin within epochs and at their ends.
OWN = {
    "icot": {"method_options": {"tokens_per_epoch": 12, "smoothing": None}},
    "coconut": {
        "num_latents": 2, "method_options": {"max_stage": 1, "epochs_per_stage": 0.7},
    },
    "lotus": {
        "num_latents": 6, "codi": {"weight": 0}, "kv": {"weight": 0},
        "latent_readout": {"weight": 0.1, "width": 3}, "method_options": {"epochs_per_stage": 1},
    },
}  # fmt: skip


def recipe(method: str, backbone: Path | str, rows: Path | str, **changes) -> Recipe:
    tree = {
        "method": method, "backbone": str(backbone), "num_latents": 4, "num_iterations": 2,
        "projection": "mlp", "drop_last_step": False, "lora": {"r": 4, "dropout": 0},
        "codi": {"weight": 1}, "kv": {"weight": 1}, "data": {"train": str(rows)},
        "train": {"epochs": 1.5, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    return Recipe.model_validate({**tree, **OWN.get(method, {}), **changes})


# -- FLOPs ---------------------------------------------------------------------------------------


def counted(one: Recipe, attention: bool) -> float:
    """FLOPs of a whole training: for each step those of a mean row, run forward and backward.

    A row alone has no pads.
    """
    reasoner, total = Reasoner.build(one).train(), 0.0
    examples, size = load_examples(one.data.train, "train"), one.train.batch_size
    alone = [batching.collate([row], pad_id=0) for row in reasoner.encoder.rows(examples)]
    per_epoch, before = math.ceil(len(alone) / size), None
    for step in range(math.ceil(one.train.epochs * per_epoch)):
        in_step = min(size, len(alone) - step % per_epoch * size)
        if before is None or one.method in OWN:  # the others do the same in each step

            def run(epoch=step / per_epoch):
                for row in alone:
                    staged = reasoner.staged(row, epoch)
                    counts = reasoner.method.counts(staged)
                    reasoner(counts=counts, **staged)["loss"].backward()

            before = flops.counted(run, attention) / len(alone)
        total += in_step * before
    return total


def seen_columns(one: Recipe, part: str) -> float:
    """Tokens of a part of all rows that are seen, five of a mean length."""
    encoder = Reasoner.build(one).encoder
    found = encoder.rows(load_examples(one.data.train, "train"))
    return 5 * sum(len(getattr(row, part)) for row in found) / len(found)


#: Weights of a layer of the tiny backbone: q and o, k and v, the MLP's three.
Q, KV, MLP = 32 * 32, 32 * 16, 3 * 32 * 64


@pytest.mark.parametrize("method", ("cot", "icot", "coconut", "codi", "kava", "lotus"))
def test_the_flops_of_a_training_are_those_of_its_steps(method, backbone, rows, monkeypatch):
    one = recipe(method, backbone, rows, adapter="full", projection="none")
    found = Wholes().of(one)
    assert (found.rows, found.steps, found.epochs, found.notes) == (3, 3, 1.5, ())
    cost_of = flops.cost_of
    monkeypatch.setattr(flops, "cost_of", lambda *a: replace(cost_of(*a), pair=0.0))
    products = Wholes().of(one).flops
    if method in ("coconut", "lotus"):
        # Of the question only the cache is read: the last layer's queries and all after them get
        # no gradient, of inputs or of weights.
        products -= 2 * 2 * (2 * Q + MLP) * seen_columns(one, "question")
    compression = 1.004 if method == "kava" else 1
    assert 1 - 1e-9 <= counted(one, attention=False) / products <= compression + 1e-9
    if method == "cot":  # real rows of a batch of one: the upper triangle is what is above
        assert 1.01 < counted(one, attention=True) / found.flops < 1.10


def test_the_flops_with_an_adapter_are_those_of_its_steps(backbone, rows, monkeypatch):
    one = recipe("cot", backbone, rows)
    cost_of = flops.cost_of
    monkeypatch.setattr(flops, "cost_of", lambda *a: replace(cost_of(*a), pair=0.0))
    columns = sum(seen_columns(one, part) for part in ("question", "steps", "answer"))
    # Frozen embeddings get no gradient, so none comes out of the first layer's q, k and v.
    spared = 2 * (Q + 2 * KV + 3 * one.lora.r * 32) * columns
    assert counted(one, attention=False) == pytest.approx(Wholes().of(one).flops - spared)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data: no rows of others are shipped")
def test_an_epoch_of_real_rows_is_counted_from_a_sample(backbone):
    file = SHARED / "gsm8k_aug_train_subset.jsonl"
    train = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3}
    one = recipe("kava", backbone, file, train=train)
    found, encoder = Wholes().of(one), Reasoner.build(one).encoder
    all_rows = encoder.rows(load_examples(str(file), "train"))
    tokens = sum(
        len(row.question) + len(row.steps) + len(row.answer) + (1 + 4) + 2 * 4 + 1 + len(row.answer)
        for row in all_rows
    )
    assert found.rows == len(all_rows) and found.steps == math.ceil(len(all_rows) / 64)
    assert found.token_forwards == pytest.approx(tokens, rel=0.03)  # 256 rows stand for all


def test_published_shapes_and_rows_by_hand():
    found = Wholes().of(load_recipe("recipes/llama1b_aug/kava.yaml"))
    if not any("not on this machine; assumed" in note for note in found.notes):
        pytest.skip("GSM8k-Aug and Llama's tokenizer are here, so that nothing is assumed")
    kept = 2 * REASONING // 3  # the last of three steps is dropped
    row = QUESTION + (kept + ANSWER) + (1 + 24) + 3 * 24 + (1 + ANSWER)
    assert (found.rows, found.steps, found.epochs) == (385_620, 30_130, 10)
    assert found.token_forwards == 3_856_200 * row
    # Llama-3.2-1B: 16 layers, d 2048, 8 of 32 heads of 64 for keys, MLP 8192.
    layer = 2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192
    lora = 128 * ((2048 + 2048) * 2 + (2048 + 512) * 2)
    column = 16 * 2 * (2 * layer + 3 * lora)
    label, latent = 2 * 2 * 2048 * 128_256, 2 * 3 * 2 * 2048**2
    labels = (kept + ANSWER) + ANSWER  # of teacher and student; where each answer begins counts
    least = column * row + label * labels + latent * 24 * 3
    assert found.flops / 3_856_200 == pytest.approx(least, rel=0.01)  # beside it attention
    assert found.backbone_bytes == pytest.approx(2 * 1.2358e9, rel=1e-3)


@pytest.mark.parametrize("adapter", ("full", "lora"))
def test_a_model_without_values_costs_what_the_model_costs(adapter):
    one = load_recipe("recipes/bench/kava.yaml", [f"adapter={adapter}", "lora.r=4"])
    real = random_reasoner(one, TINY, torch.device("cpu"))
    bare = memory.without_values(one, real.lm.config)
    assert all(weight.is_meta for weight in bare.parameters())
    assert flops.cost_of(adapters.bare(bare), memory.projection(one, bare), True) == flops.cost(
        real, True
    )
    trained = sum(w.numel() for w in real.parameters() if w.requires_grad)
    assert memory.count_weights(one, bare)[1] == trained


# -- memory and disk -----------------------------------------------------------------------------


def test_the_largest_micro_batch_that_fits():
    one = load_recipe("recipes/llama3b_aug/icot.yaml")
    found = Wholes((1e9, 70e9, 1e12)).of(one)
    assert found.fits[1e9] is None and found.fits[1e12].rows == one.train.batch_size == 32
    small = found.fits[70e9]
    assert small.memory.total <= 70e9 and 32 % small.rows == 0
    assert found.own.rows == 4 and found.own.memory.weights == small.memory.weights
    per_row = found.own.memory.activations / 4
    assert small.memory.activations == pytest.approx(small.rows * per_row, rel=1e-3)
    assert found.own.memory.total + (2 * small.rows - 4) * per_row > 70e9  # twice the rows do not


@pytest.mark.parametrize("adapter", ("lora", "full"))
def test_disk_is_that_of_a_run(adapter, backbone, tmp_path, monkeypatch):
    train = {"steps": 8, "batch_size": 2, "learning_rate": 1e-3, "save_every": 2, "log_every": 1}
    wide = tmp_path / "wide"
    model = LlamaForCausalLM(AutoConfig.from_pretrained(backbone, hidden_size=128))
    model.save_pretrained(wide)
    backbones.load_tokenizer(backbone).save_pretrained(wide)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines(4)), encoding="utf-8")
    one = recipe("kava", wide, file, adapter=adapter, train=train, lora={"r": 32})
    run, most = tmp_path / "run", []
    remove = shutil.rmtree

    def weigh(*args, **kwargs):
        most.append(size(run))
        remove(*args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", weigh)
    train_run(one, run, Console(quiet=True))
    found = disks.estimate(one, memory.without_values(one), 8)
    assert found.done == pytest.approx(size(run), rel=0.03)
    assert found.training == pytest.approx(max(most), rel=0.03)
    never = one.model_copy(update={"train": one.train.model_copy(update={"save_every": None})})
    assert disks.estimate(never, memory.without_values(one), 8).training == found.done


def size(run: Path) -> int:
    """Of the files that grow with weights and steps."""
    grow = (".safetensors", ".jsonl", ".pt")
    return sum(f.stat().st_size for f in run.rglob("*") if f.is_file() and f.suffix in grow)


@checkout
def test_a_line_of_the_log_is_as_long_as_it_is_taken_to_be():
    sizes = [
        len(line)
        for file in (ROOT / "results" / "quickstart").glob("*/metrics.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert sum(sizes) / len(sizes) > 0.6 * disks.LOG_LINE and max(sizes) < 1.2 * disks.LOG_LINE


# -- packing -------------------------------------------------------------------------------------


def tick_by_tick(jobs, gpus):
    """List scheduling in whole hours, the longest line of jobs first."""

    def hanging(job):
        after = [hanging(other) for other in jobs if other.after == job.name]
        return job.hours + max(after, default=0)

    waiting = sorted(jobs, key=lambda job: -hanging(job))
    running, done, now = {}, set(), 0
    while waiting or running:
        for job in list(waiting):
            free = len(running) < gpus
            if free and (job.after is None or job.after in done):
                waiting.remove(job)
                running[job] = now + job.hours
        now += 1
        for job in [job for job, end in running.items() if end == now]:
            del running[job]
            done.add(job.name)
    return now


hours = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(max_examples=60)
@given(hours, st.integers(1, 4), st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_packing_is_list_scheduling_and_keeps_to_its_bounds(lengths, gpus, before):
    # Each may wait for one with a smaller number; a job that is not there is waited for by nobody.
    jobs = [
        Job(str(i), n, str(before[i]) if before[i] < i else None) for i, n in enumerate(lengths)
    ]
    found = packing.packed(jobs, gpus)
    assert found == tick_by_tick(jobs, gpus)
    apart = [Job(str(i), n) for i, n in enumerate(lengths)]
    places = itertools.product(range(gpus), repeat=len(lengths))
    best = min(
        max(sum(n for n, p in zip(lengths, place, strict=True) if p == gpu) for gpu in range(gpus))
        for place in places
    )
    assert best <= packing.packed(apart, gpus) <= best * (4 / 3 - 1 / (3 * gpus)) + 1e-9


@settings(max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 12))
def test_gpus_that_are_left_are_shared_as_well_as_can_be(lengths, gpus):
    jobs = [Job(str(i), n, batch_size=12) for i, n in enumerate(lengths)]
    found = packing.shared(jobs, gpus)
    if gpus < len(jobs):
        assert found == packing.packed(jobs, gpus)
        return
    shares = itertools.product((1, 2, 3, 4, 6, 12), repeat=len(jobs))
    best = min(
        max(n / c for n, c in zip(lengths, share, strict=True))
        for share in shares
        if sum(share) <= gpus
    )
    assert found == pytest.approx(best)


def test_a_run_waits_for_the_one_that_it_begins_from():
    jobs = [Job("lotus", 6, after="cot", batch_size=4), Job("cot", 2, batch_size=4), Job("kava", 3)]
    assert packing.packed(jobs, 64) == 8
    assert packing.packed(jobs, 2) == 8 and packing.packed(jobs, 1) == 11
    # Two GPUs are left: lotus takes one, then cot; kava cannot be shared.
    assert packing.shared(jobs, 5) == 6 / 2 + 2 / 2
    assert packing.packed([], 4) == packing.shared([], 4) == 0
