"""What a training costs: counted on a tiny model, and the same by hand."""

import contextlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from refusals import refused
from tiny import weights
from transformers import LlamaConfig, LlamaForCausalLM

from kava.backbones import loading
from kava.data import load_examples
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import Recipe
from kava.sweeps import cost, memory
from kava.sweeps.cost import ANSWER, QUESTION, REASONING, Estimator, rows_seen, total_steps
from kava.sweeps.dry_run import _parts, _told
from kava.system.text import format_bytes

M, T = 4, 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Seven rows of many lengths."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {
            "question": "Ann had " + "4 pens and " * i + "7 ?",
            "steps": [f"<<{n}+1={n + 1}>>" for n in range(i % 4)],
            "answer": str(5**i),
        }
        for i in range(7)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def recipe(method: str, backbone: Path | str, rows: Path | str, **changes) -> Recipe:
    tree = {
        "method": method, "backbone": str(backbone), "num_latents": M, "num_iterations": T,
        "drop_last_step": False, "lora": {"r": 4},
        **{name: {"weight": 1} for name in weights(method)},
        "data": {"train": str(rows)},
        "train": {"epochs": 2, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    return Recipe.model_validate({**tree, **changes})


def lengths(backbone: Path, rows: Path, drop: bool = False) -> list[tuple[int, int, int]]:
    """Tokens of question with BOS, steps, and answer with its prompt and EOS, of each row."""
    tokenizer = loading.load_tokenizer(backbone)

    def size(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [
        (
            1 + size(e.question),
            sum(size(step) for step in (e.steps[:-1] if drop else e.steps)),
            size("The answer is:") + size(" " + e.answer) + 1,
        )
        for e in load_examples(str(rows), "train")
    ]


def by_hand(method: str, q: int, c: int, a: int) -> int:
    """Columns of one row that enter the backbone; spec, Methods and Latents."""
    if method == "cot":
        return q + c + a
    if method == "no_cot":
        return q + a
    # The question once; the teacher; <bot> and M latents; T times M latents; <eot> and the answer.
    return q + (c + a) + (1 + M) + T * M + (1 + a)


@pytest.mark.parametrize("method", ["cot", "no_cot", "pccot", "kava"])
@pytest.mark.parametrize("drop", [False, True])
def test_token_forwards_are_those_counted_by_hand(method, drop, backbone, rows):
    found = Estimator().cost(recipe(method, backbone, rows, drop_last_step=drop))
    epoch = sum(by_hand(method, *row) for row in lengths(backbone, rows, drop))
    assert found.notes == ()
    assert (found.steps, found.token_forwards) == (8, 2 * epoch)  # 2 epochs of 4, 3 rows last


def test_pads_of_a_micro_batch_count(backbone, rows):
    train = {"steps": 3, "batch_size": 7, "learning_rate": 1e-3}
    found = Estimator().cost(recipe("kava", backbone, rows, train=train))
    widths = [max(row[part] for row in lengths(backbone, rows)) for part in range(3)]
    assert found.token_forwards == 3 * 7 * by_hand("kava", *widths)


def test_rows_are_seen_as_the_trainer_deals_them(backbone, rows):
    assert [rows_seen(steps, 7, 3) for steps in range(7)] == [0, 3, 6, 7, 10, 13, 14]
    assert total_steps(recipe("cot", backbone, rows), 7) == 8
    train = {"epochs": 0.5, "batch_size": 2, "learning_rate": 1}
    assert total_steps(recipe("cot", backbone, rows, train=train), 7) == 2
    assert total_steps(recipe("cot", backbone, rows), None) is None


def test_each_stage_of_a_curriculum_counts_for_itself(backbone, tmp_path):
    file = tmp_path / "rows.jsonl"
    line = {"question": "Ann had 4 pens ?", "steps": ["<<4+1=5>>", "<<5+12=17>>"], "answer": "7"}
    file.write_text("".join(json.dumps({**line, "id": i}) + "\n" for i in range(4)))
    options = {"latents_per_stage": 2, "max_stage": 1, "epochs_per_stage": 1.0}
    train = {"epochs": 4, "batch_size": 2, "learning_rate": 1e-3}
    changes = {"num_latents": 2, "method_options": options, "train": train}
    found = Estimator().cost(recipe("coconut", backbone, file, **changes))
    (q, c, a), *_ = lengths(backbone, file)
    first = len(loading.load_tokenizer(backbone)("<<4+1=5>>", add_special_tokens=False).input_ids)
    stages = [q + 1 + 1 + c + a, q + 1 + 2 + 1 + (c - first) + a, *2 * [q + 1 + 2 + 1 + a]]
    assert found.token_forwards == 4 * sum(stages)


def test_without_rows_or_tokenizer_the_assumed_lengths_are_told(backbone, rows):
    known = load_resolved("recipes/llama1b_aug/kava.yaml")
    found = Estimator("cuda").cost(known)
    assert found.steps == 30_130
    kept = 2 * REASONING // 3  # the last of three steps is dropped
    row = QUESTION + (kept + ANSWER) + (1 + 24) + 3 * 24 + (1 + ANSWER)
    assert found.token_forwards == 10 * 385_620 * row
    assert f"question {QUESTION}, reasoning {REASONING}" in found.notes[0]
    assert "gsm8k_aug" in found.notes[0]
    page = Path(__file__).parents[1] / "docs" / "scale.md"
    if page.exists():  # part of a checkout only
        lines = re.findall(r"kava-seed\d+ +would run +(.+)", page.read_text(encoding="utf-8"))
        assert len(lines) == 3 and {tuple(re.split(r"  +", line)) for line in lines} == {
            _told(found)
        }
        assert f"kava: {found.notes[0]}\nkava: {_parts(found.memory)}\n" in page.read_text()

    found = Estimator().cost(recipe("cot", "nobody/nothing", rows, family="llama"))
    assert found.token_forwards == 2 * 7 * (QUESTION + REASONING + ANSWER)
    assert "the tokenizer of nobody/nothing" in found.notes[0]
    assert found.memory is None and "config.json" in found.notes[1]

    found = Estimator().cost(recipe("cot", "nobody/nothing", "nobody/rows", family="llama"))
    assert (found.steps, found.token_forwards) == (None, None)
    assert "steps not known" in found.notes[0] and "nobody/rows" in found.notes[0]

    found = Estimator().cost(recipe("cot", "nobody/nothing", rows))
    assert found.token_forwards is None and "'family'" in found.notes[1]


@pytest.mark.parametrize(
    ("name", "weights"),  # as its authors' model cards have them: 1.23, 3.21 and 0.49 billion
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
    ],
)
def test_known_shapes_have_the_published_number_of_weights(name, weights):
    bare = memory.without_values(recipe("cot", name, "synthetic", adapter="full"))
    assert sum(p.numel() for p in bare.parameters()) == weights


def test_weights_gradients_and_optimiser_are_those_of_the_model(backbone, rows):
    for changes in ({}, {"adapter": "full"}):
        wanted = recipe("kava", backbone, rows, **changes)
        built = Reasoner.build(wanted)
        trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in built.parameters())
        found = memory.estimate(wanted, memory.Traffic(), "cpu")
        assert found.weights == 4 * whole
        assert (found.gradients, found.optimiser) == (4 * trained, 8 * trained)
        assert found.total == 4 * whole + 12 * trained
        train = {**wanted.train.model_dump(), "precision": "bf16"}
        half = memory.estimate(
            wanted.model_copy(update={"train": type(wanted.train)(**train)}),
            memory.Traffic(), "cpu",
        )  # fmt: skip
        frozen = whole - trained
        assert half.weights == (6 * whole if changes else 4 * trained + 2 * frozen)


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("autocast", [False, True])
def test_activations_are_about_what_autograd_keeps(adapter, autocast, backbone, rows):
    width = 256
    wanted = recipe(
        "kava", backbone, rows, adapter=adapter, lora={"r": 16}, num_latents=24,
        train={"steps": 1, "batch_size": 32, "learning_rate": 1e-3,
               "precision": "bf16" if autocast else "fp32"},
    )  # fmt: skip
    tokenizer = loading.load_tokenizer(backbone)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip
    dtype = loading.choose_dtype(wanted, "cpu")
    model = loading.prepare(LlamaForCausalLM(config).to(dtype))
    reasoner = Reasoner(model, tokenizer, wanted, loading.identity(model, "x", None))
    (batch,) = cost.sample(reasoner, load_examples("synthetic", "train", limit=32))
    seen = cost.traffic(reasoner, [batch], math.inf)
    estimated = memory.activation_bytes(wanted, reasoner.lm, seen, autocast, "cpu")

    weights = {p.untyped_storage().data_ptr() for p in reasoner.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    casts = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), casts:
        reasoner.train()(**batch)
    sizes = (t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    assert estimated == pytest.approx(sum(sizes), rel=0.15)


def test_of_a_job_the_memory_is_that_of_one_process_on_its_gpu(backbone, rows, tmp_path, capsys):
    from rich.console import Console

    from kava.sweeps.dry_run import list_runs
    from kava.sweeps.slurm import Options
    from kava.sweeps.sweep import Scoring, plan

    file, out, console = tmp_path / "kava.yaml", tmp_path / "out", Console(width=200)
    train = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3}

    def told(jobs, **resources):
        wanted = recipe("kava", backbone, rows, train=train, resources=resources)
        file.write_text(wanted.model_dump_json(by_alias=True))
        assert list_runs(plan([str(file)], [1], [], out, console), Scoring(), console, jobs, out)
        said = capsys.readouterr().out
        return re.search(r"would run .* ([\d.]+ [MG]B)", said)[1], said

    estimators = [Estimator(device) for device in ("cpu", "cuda")]
    wanted = recipe("kava", backbone, rows, train=train)
    here, gpu = (format_bytes(one.cost(wanted).memory.total) for one in estimators)
    half = format_bytes(estimators[1].cost(wanted, 2).memory.total)
    assert len({here, gpu, half}) == 3
    assert told(None, gpus=2)[0] == here, "on this machine it is one process"
    assert told(Options(), gpus=1)[0] == gpu and told(Options(), gpus=2)[0] == half
    assert told(Options(), gpus=0)[0] == here
    assert "one process on a CPU" in told(Options(), gpus=0)[1]
    assert "one process on a GPU" in told(Options())[1]


@pytest.mark.parametrize("method", ["icot", "coconut"])
def test_a_training_that_ends_before_its_last_stage_is_foreseen(method, backbone, rows):
    """In the line that training would refuse it with."""
    longest = max(steps for _, steps, _ in lengths(backbone, rows))
    options, needed = {
        "icot": ({"tokens_per_epoch": 60}, longest / 60),
        "coconut": ({"max_stage": 1, "epochs_per_stage": 3}, 6),
    }[method]
    train = {"batch_size": 2, "learning_rate": 1e-3}
    long, short = (
        recipe(
            method, backbone, rows, num_latents=2, method_options=options, train={**train, **end}
        )
        for end in ({"epochs": 7}, {"steps": 1})
    )
    estimator = Estimator("cpu")
    assert estimator.cost(long).refusal == ""
    refusal = estimator.cost(short).refusal
    assert f"'{method}'" in refusal and f" {needed:.2f} " in refusal
    with refused("training.too-short", "method_options") as told:
        Reasoner.build(short).train_on(load_examples(str(rows), "train"), quiet=True)
    assert str(told.value) == refusal


def test_a_dry_run_lists_every_run_and_writes_nothing(backbone, rows, tmp_path, capsys):
    from rich.console import Console

    from kava.sweeps.dry_run import list_runs
    from kava.sweeps.sweep import Scoring, plan, sweep

    file, out = tmp_path / "kava.yaml", tmp_path / "out"
    wanted = recipe("kava", backbone, rows)
    file.write_text(wanted.model_dump_json(by_alias=True))
    console = Console(width=200)
    done = plan([str(file)], [1], [], out, console)
    sweep(done, Scoring(), out, console)
    capsys.readouterr()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    assert list_runs(plan([str(file)], [1, 2], [], out, console), Scoring(), console)
    said = capsys.readouterr().out
    tokens = 2 * sum(by_hand("kava", *row) for row in lengths(backbone, rows))
    assert re.search(rf"kava-seed1 +done +8 +{tokens:,} +[\d.]+ MB", said)
    assert re.search(rf"kava-seed2 +would run +8 +{tokens:,} +[\d.]+ MB", said)
    assert f"2 runs: 1 done, 1 would run; {tokens:,} token-forwards to go" in said
    assert list_runs(done, Scoring(["synthetic"]), console)
    assert "would be scored" in capsys.readouterr().out
    changed = plan([str(file)], [1], ["num_latents=3"], out, console)
    assert not list_runs(changed, Scoring(), console)
    assert "num_latents: 4 in the run, 3 given" in capsys.readouterr().out
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")} == before
