"""`kava bench matrix`: its arithmetic against steps that are really counted, and slow packing."""

import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny import weights
from transformers import AutoConfig, LlamaForCausalLM

from kava import adapter as adapters
from kava import backbone as backbones
from kava import batching, memory
from kava import disk as disks
from kava.bench import flops, matrix, packing, speed
from kava.bench.packing import Job
from kava.bench.shapes import random_reasoner
from kava.bench.whole import Wholes
from kava.cost import ANSWER, QUESTION, REASONING
from kava.data import load_examples
from kava.errors import KavaError
from kava.model import Reasoner
from kava.recipe import Recipe
from kava.recipe_file import load_recipe
from kava.report import readme, scale
from kava.run import train_run

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "results" / "bench"
SHARED = ROOT.parent / "shared" / "data"
checkout = pytest.mark.skipif(not BENCH.is_dir(), reason="part of a checkout only")
TINY = (
    "llama:hidden_size=16,num_hidden_layers=2,intermediate_size=24,num_attention_heads=4,"
    "num_key_value_heads=2,vocab_size=40"
)


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
        "num_latents": 6, "kv": {"weight": 0},
        "latent_readout": {"weight": 0.1, "width": 3}, "method_options": {"epochs_per_stage": 1},
    },
}  # fmt: skip


def recipe(method: str, backbone: Path | str, rows: Path | str, **changes) -> Recipe:
    tree = {
        "method": method, "backbone": str(backbone), "num_latents": 4, "num_iterations": 2,
        "projection": "mlp", "drop_last_step": False, "lora": {"r": 4, "dropout": 0},
        **{name: {"weight": 1} for name in weights(method)}, "data": {"train": str(rows)},
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
def test_an_epoch_of_real_rows(backbone, monkeypatch):
    file = SHARED / "gsm8k_aug_train_subset.jsonl"
    train = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3}
    changes = {"adapter": "full", "train": train}
    one = recipe("kava", backbone, file, data={"train": str(file), "train_rows": 500}, **changes)
    found, reasoner = Wholes().of(one), Reasoner.build(one).train()
    encode = reasoner.encoder.rows
    every = encode(load_examples(str(file), "train", limit=500))

    def columns(question, steps, answer):
        return question + steps + answer + (1 + 4) + 2 * 4 + 1 + answer

    real = [columns(len(row.question), len(row.steps), len(row.answer)) for row in every]
    assert (found.rows, found.steps) == (500, 8)
    assert found.token_forwards == pytest.approx(sum(real), rel=0.03)  # 256 rows stand for all

    # An epoch of a few, run in batches: what is above the least is pads, of columns alone.
    few = recipe("kava", backbone, file, data={"train": str(file), "train_rows": 12}, **changes)
    batches = [batching.collate(every[at : at + 4], pad_id=0) for at in range(0, 12, 4)]
    run = flops.counted(
        lambda: [reasoner(**batch)["loss"].backward() for batch in batches], attention=False
    )
    cost_of = flops.cost_of
    monkeypatch.setattr(flops, "cost_of", lambda *a: replace(cost_of(*a), pair=0.0))
    padded = sum(
        4 * columns(*(batch[part].shape[1] for part in ("question", "steps", "answer")))
        for batch in batches
    )
    assert 1 < run / Wholes().of(few).flops < padded / sum(real[:12])


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
    assert packing.shared(jobs, 4) == 6 / 2 + 2
    assert packing.shared(jobs, 5) == 6 / 2 + 2 / 2
    assert packing.packed([], 4) == packing.shared([], 4) == 0


# -- speeds and hours ----------------------------------------------------------------------------


def rewritten(folder: Path, name="gpu.json", **changes) -> Path:
    """The committed measurement of steps, as if of another machine."""
    tree = json.loads((BENCH / "train.json").read_text(encoding="utf-8"))
    file = folder / name
    file.write_text(json.dumps({**tree, **changes}), encoding="utf-8")
    return file


LIKE_THE_BENCH = [
    "--set", "data.train=gsm8k_aug", "train.steps=1", "drop_last_step=false", "--shape", "small",
]  # fmt: skip


@checkout
def test_hours_from_a_measured_speed_are_the_time_that_was_measured(kava, tmp_path):
    # A "training" of one step of the benchmark's recipes, on its shape: the assumed lengths are
    # those of the benchmark's rows.
    out = tmp_path / "out.json"
    recipes = [f"recipes/bench/{name}.yaml" for name in ("cot", "no_cot", "pccot", "codi", "kava")]
    measured = BENCH / "train.json"
    status, said = kava("bench", "matrix", *recipes, *LIKE_THE_BENCH, "--measured", measured,
                        "--gpus", 1, 5, "-o", out)  # fmt: skip
    assert status == 0, said
    told, rows = json.loads(out.read_text()), json.loads(measured.read_text())["rows"]
    if not any("assumed" in note for note in told["assumed"]):
        pytest.skip("GSM8k-Aug is here, whose rows are of other lengths")
    ms = {name: 3_600_000 * value for name, value in told["hours"]["each"].items()}
    assert ms.keys() == rows.keys() and told["hours"]["runs"] == 5
    exact = {
        name: 1000 * told["recipes"][name]["flops_least"] / (row["mfu"] * 1.94075167441e11)
        for name, row in rows.items()
    }
    for name, row in rows.items():
        assert exact[name] == pytest.approx(row["ms_per_step"]["median"], rel=0.015), name
        assert f"{name}: speed measured on AMD EPYC, train.json: {name}, 32 rows at once" in said
    assert told["hours"]["gpu_hours"] == pytest.approx(sum(exact.values()) / 3.6e6, abs=1e-4)


@checkout
def test_a_speed_stands_for_the_same_method_adapter_shape_and_way_of_training(tmp_path):
    gpu = {"accelerator": "H200", "processor": "x"}
    tree = json.loads((BENCH / "train.json").read_text(encoding="utf-8"))
    shapes = {name: "meta-llama/Llama-3.2-1B-Instruct" for name in tree["rows"]}
    file = rewritten(tmp_path, machine=gpu, shapes=shapes)
    known = speed.speeds([file], None, None)
    one = load_recipe("recipes/bench/kava.yaml").train  # precision: auto
    bf16 = one.model_copy(update={"precision": "bf16"})
    found = known.of("kava", "full", "llama-3.2-1b", bf16)
    assert found == known.of("kava", "full", "meta-llama/Llama-3.2-1B-Instruct", one)
    assert found.share == tree["rows"]["kava"]["mfu"] and found.rate == 194075167441
    again = one.model_copy(update={"gradient_checkpointing": True})
    fp32 = one.model_copy(update={"precision": "fp32"})
    others = [
        ("codi", "lora", "llama-3.2-1b", one), ("lotus", "full", "llama-3.2-1b", one),
        ("kava", "full", "small", one), ("kava", "full", "llama-3.2-1b", again),
        ("kava", "full", "llama-3.2-1b", fp32),
    ]  # fmt: skip
    assert [known.of(*other) for other in others] == [None] * 5
    given = speed.speeds([file], 0.5, 1e12)
    assert given.of(*others[0]).flops_per_second == 5e11
    assert given.of("kava", "full", "llama-3.2-1b", one) == found
    # Of two measurements the faster, since one would train like that.
    slow = rewritten(tmp_path, "slow.json", machine=gpu, shapes=shapes,
                     matrix_flops_per_second=dict.fromkeys(tree["rows"], 1))  # fmt: skip
    assert speed.speeds([slow, file], None, None).of("kava", "full", "llama-3.2-1b", one) == found


def test_hours_are_flops_over_share_and_rate(kava, tmp_path):
    out = tmp_path / "out.json"
    words = ["bench", "matrix", "recipes/llama1b_aug/cot.yaml", "recipes/llama1b_aug/lotus.yaml",
             "--seeds", 42, 7, "--gpus", 1, 8, "--gpu-memory", 80, "-o", out]  # fmt: skip
    status, said = kava(*words, "--share", 0.5, "--rate", 1e15)
    assert status == 0
    told = json.loads(out.read_text())
    rows, hours = told["recipes"], told["hours"]
    assert list(rows) == ["cot", "lotus"] and rows["lotus"]["after"] == "cot-seed42"
    assert rows["lotus"]["shape"] == rows["cot"]["shape"] == "meta-llama/Llama-3.2-1B-Instruct"
    each = {name: row["flops_least"] / 5e14 / 3600 for name, row in rows.items()}
    assert hours["each"] == pytest.approx(each, rel=1e-3)
    assert hours["on_gpus"]["1"]["one_gpu_a_run"] == pytest.approx(2 * sum(each.values()), 1e-3)
    assert hours["on_gpus"]["8"]["one_gpu_a_run"] == pytest.approx(sum(each.values()), 1e-3)
    assert hours["on_gpus"]["8"]["gpus_left_shared"] < 0.6 * sum(each.values())
    assert hours["on_gpus"]["8"]["gpus_left_shared"] >= hours["gpu_hours"] / 8 - 1e-3
    assert "nobody has measured it" in said and "as given" in said
    assert told["totals"]["backbones"] == rows["cot"]["backbone_bytes"]  # once
    assert told["totals"]["disk_done"] == 2 * sum(row["disk"]["done"] for row in rows.values())


def test_without_a_speed_there_are_no_hours(kava, tmp_path):
    out = tmp_path / "out.json"
    status, said = kava("bench", "matrix", "recipes/qwen05b_aug/kava.yaml", "-o", out)
    assert status == 0 and "no hours: give --measured FILE" in said
    assert json.loads(out.read_text())["hours"] is None
    assert not re.search(r"\d hours|GPU hours", said)
    words = "--share", 0.4, "--rate", 1e15
    status, said = kava("bench", "matrix", "recipes/qwen05b_aug/kava.yaml", *words)
    assert status == 0 and re.search(r"\n1 of 1 run: [\d.,]+ GPU hours\n", said)


def test_what_is_not_known_is_said_and_left_out(kava, tmp_path):
    out = tmp_path / "out.json"
    status, said = kava("bench", "matrix", "recipes/qwen05b_aug/lotus.yaml", "--share", 1, "--rate",
                        1e15, "--set", "data.train=no_such.jsonl", "-o", out)  # fmt: skip
    assert status == 0 and "?" in said
    row = json.loads(out.read_text())["recipes"]["lotus"]
    assert [row[key] for key in ("rows", "steps", "flops_least", "memory", "disk")] == [None] * 5
    assert "FLOPs not known: no_such.jsonl" in said
    assert "./runs/qwen05b_aug-cot-seed42: its config.json is not on this machine" in said
    assert "no hours" in said and "0 of 1 run: 0 GFLOP" in said


@pytest.mark.parametrize(
    "words,says",
    (
        (["--share", 0.4], "--share and --rate belong together"),
        (["--share", 1.5, "--rate", 1e12], "--share 1.5: a share of the rate lies above 0"),
        (["--share", "nan", "--rate", 1e12], "--share nan: a share"),
        (["--share", 0.4, "--rate", -1], "--rate -1: FLOPs per second"),
        (["--share", 0.4, "--rate", "inf"], "--rate inf: FLOPs per second"),
        (["--gpus", 0], "--gpus and --gpu-memory are numbers above 0"),
        (["--gpu-memory", "nan"], "--gpus and --gpu-memory are numbers above 0"),
        (["--measured", "no.json"], "no.json: cannot be read"),
        (["--measured", "results/bench/generate.json"], "not a result of kava bench train"),
        (["--shape", "lama"], "shape 'lama' is not known"),
        (["--set", "seed=3"], "give --seeds"),
    ),
)
def test_bad_input_is_one_line(kava, words, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "results" in str(words) and not BENCH.is_dir():
        pytest.skip("part of a checkout only")
    status, said = kava("bench", "matrix", "recipes/qwen05b_aug/kava.yaml", *words)
    assert status == 2 and says in said and "Traceback" not in said
    assert len([line for line in said.splitlines() if says in line]) == 1


def test_recipes_that_begin_from_each_other_are_refused(kava, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    text = (ROOT / "recipes/qwen05b_aug/cot.yaml").read_text(encoding="utf-8")
    for name, other in (("a", "b"), ("b", "a")):
        changed = re.sub(r"backbone: \S+", f"backbone: runs/mine-{other}-seed42", text)
        (folder / f"{name}.yaml").write_text(changed, encoding="utf-8")
    status, said = kava("bench", "matrix", folder / "a.yaml", folder / "b.yaml")
    assert status == 2 and "begins from its own" in said


@checkout
def test_files_of_two_machines_are_refused(tmp_path):
    file = rewritten(tmp_path, machine={"accelerator": "NVIDIA H200"})
    with pytest.raises(KavaError, match=r"on AMD EPYC, .* on NVIDIA H200; hours are"):
        speed.speeds([BENCH / "train.json", file], None, None)


# -- the page ------------------------------------------------------------------------------------


@checkout
@pytest.mark.parametrize("name", ("matrix_paper", "matrix_methods"))
def test_the_committed_matrix_is_what_is_counted_now(name):
    told = scale.read(ROOT, name)
    assert "+" not in told["commit"] and told["hours"] is None
    recipes = ["llama1b_aug-kava"] + ["qwen05b_aug_nl-lotus"] * (name == "matrix_methods")
    for one in recipes:
        files = [f"recipes/{one.replace('-', '/')}.yaml"]
        files += [files[0].replace("lotus", "cot")] * (one.endswith("lotus"))
        planned = matrix.plan(files, told["recipes"][one]["seeds"], [], Console(quiet=True))
        own = next(iter(n for n in planned.runs if one.endswith(n)))
        row, whole = matrix.row(planned, own, Wholes([40e9, 80e9, 141e9]))
        if not any("not on this machine; assumed" in note for note in whole.notes):
            pytest.skip("GSM8k-Aug and the tokenizer are here, so that nothing is assumed")
        names = {"runs", "after"}  # longer names where there are more recipes
        # A key of recipes that is newer than the file has its default in it.
        row["train"] = {key: row["train"][key] for key in told["recipes"][one]["train"]}
        expected = {key: value for key, value in told["recipes"][one].items() if key not in names}
        assert {key: value for key, value in row.items() if key not in names} == expected
    assert len(told["recipes"]) == (6 if name == "matrix_paper" else 48)
    assert told["totals"]["runs"] == (18 if name == "matrix_paper" else 48)


@checkout
def test_the_page_has_hours_as_soon_as_a_gpu_was_measured(tmp_path):
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    shutil.copytree(BENCH, tmp_path / "results/bench", ignore=shutil.ignore_patterns("gpu"))
    before = readme.filled(text, tmp_path, "docs/scale.md")
    assert "nothing is measured yet" in before and "An example, not a measurement" in before
    (tmp_path / "results/bench/gpu").mkdir()
    tree = json.loads((BENCH / "train.json").read_text(encoding="utf-8"))
    recipes = {name: {**one, "adapter": "lora"} for name, one in tree["recipes"].items()}
    rewritten(
        tmp_path / "results/bench/gpu", "train.json", recipes=recipes,
        machine={"accelerator": "NVIDIA H200"}, shapes=dict.fromkeys(recipes, "llama-3.2-1b"),
    )  # fmt: skip
    rewritten(tmp_path / "results/bench/gpu", "generate.json", rows={})
    after = readme.filled(text, tmp_path, "docs/scale.md")
    assert "nothing is measured yet" not in after and "An example" not in after
    paper = scale.read(ROOT, "matrix_paper")["recipes"]
    each = [
        paper[f"llama1b_aug{end}-kava"]["flops_least"]
        / (tree["rows"]["kava"]["mfu"] * 194075167441 * 3600)
        for end in ("", "_nl")
    ]
    total, most = f"{3 * sum(each):,.1f}", f"{max(each):,.1f}"
    assert f"| `kava`, three seeds | 6 of 18 | {total} | {most} | {most} |" in after
    assert re.search(r"\| every method, one seed \| 10 of 48 \|", after)
    assert "| `kava`, lora | llama-3.2-1b | 32 of 32 | 1,008 | 1.043 | 67 % | 1.5 GB |" in after
    assert "measured on NVIDIA H200, train.json: kava, 32 rows at once" in after


@checkout
def test_what_the_page_says_of_the_measurements_in_words():
    text = " ".join((ROOT / "docs/scale.md").read_text(encoding="utf-8").split())
    for name in ("predecessors", "train", "train_grouped", "generate", "growth"):
        told = scale.read(ROOT, name)
        assert told["machine"]["processor"] == "AMD EPYC", name
        assert (told["machine"]["cores"], told["machine"]["threads"]) == (2, 2), name
        if "lengths" in told:
            assert told["lengths"] == {
                "question": [59, 70], "reasoning": [41, 41], "answer": [8, 8], "steps": 3,
            }  # fmt: skip
    assert "two cores of an AMD EPYC, with two threads" in text
    assert "questions of 59 to 70 tokens, reasoning of 41, M 24, T 3, 32 rows" in text
    growth = scale.read(ROOT, "growth")
    assert f"batch {growth['base']['batch']}" in text
    answers = scale.read(ROOT, "generate")["rows"]
    assert {row["generated_tokens"] for row in answers["cot"]} == {49}
    assert {row["generated_tokens"] for row in answers["kava"]} == {4}
    assert f"{scale.read(ROOT, 'predecessors')['repeats']} rounds" in text
