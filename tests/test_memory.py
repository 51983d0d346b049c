"""The memory of a training step: counted on fake tensors and on real ones."""

import gc
import json

import pytest
import torch
from refusals import refused
from rich.console import Console

from kava.backbones import attention, pretrained
from kava.bench import memory as counting
from kava.bench.memory_command import bench_memory
from kava.bench.shapes import Lengths, configuration, random_reasoner, random_rows
from kava.bench.train import Training
from kava.reasoning import batching
from kava.reasoning.losses import cross_entropy
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.training import memory as stepping
from kava.training.memory import LiveBytes
from kava.training.sampler import EpochOrder

SHORT = Lengths(question=(5, 9), reasoning=(6, 6), answer=(7, 7))
TINY = (
    "llama:hidden_size=16,num_hidden_layers=2,intermediate_size=24,num_attention_heads=4,"
    "num_key_value_heads=2,vocab_size=40"
)


def recipe(method="kava", *settings):
    return load_resolved(f"recipes/bench/{method}.yaml", ["train.batch_size=4", *settings])


def test_what_lives_is_counted_once_and_until_it_is_freed():
    with LiveBytes() as living:
        one = torch.zeros(100)  # 400 bytes
        view = one[:50].view(5, 10)
        assert living.current == 400
        two = one + 1
        del one
        gc.collect()
        assert living.current == 800, "a view keeps its storage"
        del view
        gc.collect()
        assert (living.current, living.peak) == (400, 800)
        two.add_(1)
        assert living.current == 400
        living.add(two)
        assert living.current == 400
    torch.zeros(1000)
    assert living.peak == 800, "only inside the block"


def real_peak(settings, method):
    """Return the peak memory of the same step on tensors that have values."""
    training = Training.build(recipe(method, *settings), TINY, SHORT, torch.device("cpu"))
    training.step()  # the optimiser has its states
    for weight in training.reasoner.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    gc.collect()
    with LiveBytes() as living:
        for tensor in (*training.reasoner.parameters(), *training.reasoner.buffers()):
            living.add(tensor)
        for weight in training.reasoner.parameters():
            if weight.grad is not None:
                living.add(weight.grad)
        for state in training.optimiser.state.values():
            for tensor in state.values():
                living.add(tensor)
        for batch in training.micro_batches:
            for value in (*batch.values(), *batch["counts"].values()):
                if isinstance(value, torch.Tensor):
                    living.add(value)
        training.optimiser.zero_grad()
        living.peak = living.current
        training.step()
    return living.peak


@pytest.mark.parametrize(
    "settings",
    [
        ("adapter=lora", "lora.r=4"),
        ("adapter=full", "train.precision=bf16"),
        ("adapter=lora", "lora.r=4", "train.gradient_checkpointing=true"),
        ("adapter=lora", "lora.r=4", "train.micro_batch_size=2"),
    ],
)
@pytest.mark.parametrize("method", ["cot", "kava"])
def test_tensors_without_values_take_what_real_ones_take(method, settings):
    rows = 2 if settings[-1].startswith("train.micro") else 4
    counted = counting.count(recipe(method, *settings), TINY, SHORT, rows, "cpu")
    assert counted.total == pytest.approx(real_peak(settings, method), rel=0.01)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_widest_of_many_micro_batches_is_counted(grouped, monkeypatch):
    """Against micro-batches that are made and measured one by one."""
    draws, seen = 40, []
    monkeypatch.setattr(counting, "DRAWS", draws)
    monkeypatch.setattr(stepping, "count", lambda reasoner, batches, *_: seen.extend(batches))
    settings = ("train.micro_batch_size=2", f"train.group_by_length={grouped}".lower())
    wanted, real = recipe("kava", *settings), Lengths(source="gsm8k")
    counting.count(wanted, TINY, real, 2, "cpu")

    def width(batch):
        return sum(batch[part].shape[1] for part in ("question", "steps", "answer"))

    reasoner = random_reasoner(wanted, TINY, torch.device("cpu"))
    rows = random_rows(reasoner, real, 2 * draws)
    lengths = [row.columns for row in rows] if grouped else None
    order = list(EpochOrder(len(rows), 0, 2, lengths, wanted.train.batch_size))
    micro = [batching.collate([rows[i] for i in order[at : at + 2]], 0) for at in range(0, 80, 2)]
    assert [width(batch) for batch in seen] == [max(map(width, micro))] * 2  # of two in a step
    assert width(seen[0]) > max(row.columns for row in rows) or grouped


def test_lengths_of_real_examples_are_counted_unless_others_are_given(kava, tmp_path):
    words = ("bench", "memory", "recipes/bench/cot.yaml", "--shape", TINY, "--rows", 2)
    for more, source in (((), "gsm8k"), (("--question", 9), None), (("--reasoning", 9), None)):
        status, said = kava(*words, *more, "-o", tmp_path / "memory.json")
        assert status == 0, said
        told = json.loads((tmp_path / "memory.json").read_text())
        assert told["lengths"]["source"] == source


@pytest.mark.parametrize("frozen", [(), ("adapter=lora", "lora.r=4", "train.precision=bf16")])
@pytest.mark.parametrize("method", registry.names("methods"))
def test_every_method_can_be_counted(method, frozen):
    settings = {
        "lotus": ("latent_readout.width=2",),
        "coconut": ("method_options.latents_per_stage=1", "method_options.max_stage=2"),
    }.get(method, ())
    few = ("num_latents=2", "num_iterations=1", "train.batch_size=2")
    weights = ("kv.weight=0", "codi.weight=0")
    wanted = recipe("kava", f"method={method}", *few, *weights, *settings, *frozen)
    found = counting.count(wanted, TINY, SHORT, 2, "cuda")
    assert min(found.weights, found.gradients, found.optimiser, found.activations) > 0
    assert found.optimiser == pytest.approx(2 * found.gradients, rel=0.05)
    model = random_reasoner(wanted, TINY, torch.device("cpu"))
    model.prepare_training()  # what only the loss needs is trained too
    assert found.gradients == 4 * sum(w.numel() for w in model.parameters() if w.requires_grad)


@pytest.mark.parametrize("again", [False, True])
def test_logits_are_in_memory_for_some_labels_at_a_time(again, monkeypatch):
    again = f"train.gradient_checkpointing={again}".lower()
    wanted = recipe("cot", "adapter=lora", "lora.r=4", again)
    vocabulary, rows = 4000, 4
    shape = TINY.replace("vocab_size=40", f"vocab_size={vocabulary}")
    peaks = {}
    for labels in (4, 1000):
        monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", labels * vocabulary)
        peaks[labels] = counting.count(wanted, shape, SHORT, rows, "cpu").activations
    # Logits in fp32, their probabilities and gradient: 12 bytes for each of so many labels less.
    fewer = rows * (SHORT.reasoning[0] + SHORT.answer[0]) - 4
    assert peaks[1000] - peaks[4] == pytest.approx(12 * fewer * vocabulary, rel=0.1)


def test_attention_as_on_gpus_is_the_same_attention():
    model = random_reasoner(recipe("kava"), TINY, torch.device("cpu"))
    training = Training.from_reasoner(model.eval(), SHORT, False)
    training.gradients()
    plain = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    training.optimiser.zero_grad()
    with attention.allocate_as_on_gpu():
        training.gradients()
    other = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert plain
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)


def test_the_command_writes_what_it_counted(tmp_path, capsys):
    file = tmp_path / "memory.json"
    words = ["recipes/bench/cot.yaml"], ["lora.r=4"], TINY, SHORT, [2, 4], "cuda", file
    bench_memory(*words, Console(width=200))
    told = json.loads(file.read_text())
    few, many = told["rows"]["cot"]["2"], told["rows"]["cot"]["4"]
    assert few["weights"] == many["weights"] and few["activations"] < many["activations"]
    assert few["peak"] == sum(few[k] for k in ("weights", "gradients", "optimiser", "activations"))
    assert "written" in capsys.readouterr().out
    for wrong, device, code, key in (
        ([0], "cuda", "bench.not-above-0", "--rows"),
        ([2], "tpu", "bench.unknown-device", "--device"),
    ):
        with refused(code, key):
            bench_memory(*words[:4], wrong, device, None, Console())


def test_dropout_keeps_a_byte_for_each_number_as_on_gpus():
    given, kept = torch.ones(64, dtype=torch.bfloat16, requires_grad=True), []
    layer = torch.nn.Dropout(0.5)
    with (
        stepping._dropout_as_on_gpus(),
        torch.autograd.graph.saved_tensors_hooks(kept.append, lambda held: held),
    ):
        assert set(layer(given).tolist()) == {0.0, 2.0}
        assert layer.eval()(given) is given
    assert [tensor.untyped_storage().nbytes() for tensor in kept] == [64]
    layer.train()(given)
    assert len(kept) == 1, "only inside the block"


@pytest.mark.parametrize("adapter", ("full", "lora"))
def test_weights_gradients_and_optimiser_are_those_of_the_model(adapter):
    for precision, frozen_bytes in (("fp32", 4), ("bf16", 2)):
        few = ("num_latents=2", "num_iterations=1")
        one = recipe("kava", f"adapter={adapter}", "lora.r=4", f"train.precision={precision}", *few)
        real = random_reasoner(one, TINY, torch.device("cpu"))
        found = counting.count(one, TINY, SHORT, 2, "cpu")
        trained = sum(w.numel() for w in real.parameters() if w.requires_grad)
        frozen = sum(w.numel() for w in real.parameters() if not w.requires_grad)
        assert found.gradients == 4 * trained
        assert found.optimiser == pytest.approx(8 * trained, rel=0.02)  # and the number of steps
        assert found.weights == pytest.approx(4 * trained + frozen_bytes * frozen, rel=0.02)


@pytest.mark.parametrize(
    ("name", "weights"),  # as its authors' model cards have them: 1.23, 3.21 and 0.49 billion
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
    ],
)
def test_known_shapes_have_the_published_number_of_weights(name, weights):
    with torch.device("meta"):
        bare = pretrained.new_model(configuration(name), dtype=torch.float32)
    assert sum(p.numel() for p in bare.parameters()) == weights
