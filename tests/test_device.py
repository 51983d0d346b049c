"""Where a command computes: what it says of it, and that it never falls back to the CPU."""

import json
import os
import socket
from datetime import timedelta
from types import SimpleNamespace

import accelerate
import pytest
import torch
import uvicorn
import yaml
from refusals import refused
from rich.console import Console
from tiny import bare, example, reasoner, recipe
from torch.distributed.fsdp import MixedPrecisionPolicy

from kava.backbones import loading
from kava.backbones.device import describe
from kava.reasoning import open as open_
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.system import distributed, environment, sharded
from kava.system.memory import peak_memory
from kava.system.progress import Progress
from kava.system.text import PlainConsole
from kava.training.run import train_run
from kava.training.trainer import train

SHAPE = (
    "llama:hidden_size=16,intermediate_size=24,num_hidden_layers=1,num_attention_heads=2,"
    "num_key_value_heads=2,vocab_size=100"
)
BENCH = ("--shape", SHAPE, "--repeats", 1, "--warm-up", 0)


@pytest.fixture
def too_old(monkeypatch, tmp_path):
    """A machine with an NVIDIA GPU whose driver is too old for the installed torch."""

    def init():
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 12040). Please update."
        )

    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(environment, "_DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "")  # so that it is what it was before, after the test
        monkeypatch.delenv(name)
    return tmp_path


def test_a_gpu_that_cannot_be_used_is_told(too_old):
    with refused("system.cuda-unusable", "--cpu") as told:
        environment.default_device()
    assert "found version 12040" in str(told.value)


@pytest.mark.parametrize("hidden", ("", "-1"))
def test_a_hidden_gpu_is_none(too_old, hidden, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert environment.default_device() == "cpu"


def test_without_a_device_that_opens_the_cpu_is_used(too_old, monkeypatch):
    def refuse(*args):
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)  # as where a job was given no GPU
    assert environment.default_device() == "cpu"


def test_the_cpu_can_be_asked_for(too_old, kava):
    assert kava("--cpu", "recipes")[0] == 0
    assert environment.default_device() == "cpu"


def test_the_only_gpu_that_a_task_sees_is_its_first(monkeypatch):
    """As where SLURM binds a GPU to each; accelerate's barrier takes the number of the task."""
    seen = []

    def state(cpu, timeout):
        seen.append((cpu, os.environ["LOCAL_RANK"]))
        assert timeout > timedelta(hours=1)  # a download or a leak check of the main process

    monkeypatch.setattr(accelerate, "PartialState", state)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpus in (4, 1):
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        distributed._state()
    assert seen == [(False, "3"), (False, "0")]


@pytest.mark.parametrize(
    ("family", "choice", "words"),
    [("llama", 2, "memory-efficient"), ("llama", 3, "cuDNN"), ("gemma2", 2, "soft-capped")],
)
def test_a_line_says_where_and_how(family, choice, words, monkeypatch):
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **named: choice)
    line = describe(bare(family), autocast=True, rows=32)
    assert line.startswith("device: cpu; weights in float32, computed in bfloat16; 32 rows at once")
    assert words in line


@pytest.mark.parametrize(
    ("known", "slow"),
    [
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, False),
        ({"avx2": True}, False),
    ],
)
def test_a_processor_that_is_slow_in_bf16_is_told(known, slow, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    lines = [describe(bare("llama"), autocast, rows=1) for autocast in (True, False)]
    assert ["; this processor" in line for line in lines] == [slow, False]


#: Every command that computes with a model, and how many such lines it prints.
COMMANDS = {
    "train": (["train", "{recipe}", "-o", "{tmp}/other"], 1),
    "pretrain": (["pretrain", "{shape}", "-o", "{tmp}/other"], 1),
    "eval": (["eval", "{run}", "--task", "synthetic", "--limit", 2, "-o", "{tmp}/other"], 1),
    "ask": (["ask", "{run}", "4+3"], 1),
    "inspect": (["inspect", "{run}", "4+3", "--max-new-tokens", 4, "-o", "{tmp}/page.html"], 1),
    "ablate": (["ablate", "{run}", "--task", "synthetic", "--limit", 2, "-o", "{tmp}/other"], 1),
    "serve": (["serve", "{run}", "--port", "{port}"], 1),
    "demo": (["demo", "{run}", "--written", "{backbone}", "--port", "{port}"], 2),
    "sweep": (["sweep", "{recipe}", "--task", "synthetic", "--limit", 2, "-o", "{tmp}/runs"], 2),
    "bench train": (["bench", "train", "{recipe}", *BENCH], 1),
    "bench generate": (["bench", "generate", "{recipe}", *BENCH, "--batch", 2], 1),
}


@pytest.fixture(scope="module")
def files(backbone, tmp_path_factory):
    """A run, its recipe, and that of a backbone."""
    tmp = tmp_path_factory.mktemp("device")
    tree = {
        "method": "pccot", "backbone": str(backbone), "lora": {"r": 4}, "num_latents": 2,
        "num_iterations": 1, "codi": {"weight": 0},
        "data": {"train": "synthetic", "train_rows": 8},
        "train": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3},
        "eval": {"max_new_tokens": 4},
    }  # fmt: skip
    found = {"run": tmp / "run", "recipe": tmp / "recipe.yaml", "shape": tmp / "shape.yaml"}
    found["backbone"] = backbone
    with socket.create_server(("127.0.0.1", 0)) as free:
        found["port"] = free.getsockname()[1]
    found["recipe"].write_text(yaml.safe_dump(tree), encoding="utf-8")
    shape = {
        "name": "tiny", "vocabulary": {"size": 300, "digits": "whole"},
        "architecture": {"family": "llama", "hidden_size": 16, "intermediate_size": 24,
                         "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
                         "max_positions": 256},
        "data": tree["data"], "train": tree["train"], "eval": tree["eval"],
    }  # fmt: skip
    found["shape"].write_text(yaml.safe_dump(shape), encoding="utf-8")
    train_run(load_resolved(str(found["recipe"])), found["run"], PlainConsole(quiet=True))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_where_it_computes(name, files, kava, tmp_path, monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)  # no request comes
    words, lines = COMMANDS[name]
    status, said = kava(*[str(word).format(tmp=tmp_path, **files) for word in words])
    assert status == 0, said
    found = [line for line in said.splitlines() if "device: cpu; weights in float32" in line]
    assert len(found) == lines, said


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_computes_on_the_cpu_unasked(name, files, kava, tmp_path, too_old):
    words, _ = COMMANDS[name]
    status, said = kava(*[str(word).format(tmp=tmp_path, **files) for word in words])
    assert status == 2 and said.code == "system.cuda-unusable", said


@pytest.mark.parametrize("name", ["ask", "serve"])
def test_the_dtype_of_answers_can_be_chosen(name, files, kava, tmp_path, monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)  # no request comes
    words = [str(word).format(tmp=tmp_path, **files) for word in COMMANDS[name][0]]
    status, said = kava(*words, "--dtype", "bfloat16")
    assert status == 0 and "device: cpu; weights in bfloat16" in said, said
    status, said = kava(*words, "--dtype", "int8")
    assert status == 2 and said.code == "backbones.bad-dtype"


def test_the_line_is_no_part_of_an_answer(files, kava):
    status, said = kava("ask", files["run"], "4+3")
    assert status == 0 and "device:" not in said.out and "device: cpu" in said


def test_fsdp_reduces_gradients_in_fp32():
    plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16))
    sharded.keep_precision(plugin)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (None, torch.float32)
    assert policy.output_dtype is None and not policy.cast_forward_inputs
    sharded.keep_precision(None)


def test_the_kernel_of_this_machine_is_found():
    assert describe(bare("llama"), autocast=False, rows=1).endswith(("flash", "plain operations"))


def test_on_a_gpu_reserved_memory_is_told_beside_allocated(monkeypatch):
    for name, value in (("max_memory_allocated", 5), ("max_memory_reserved", 8)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    with peak_memory(torch.device("cuda")) as peak:
        pass
    assert (peak.of, peak.bytes, peak.reserved) == ("accelerator", 5, 8)


# -- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype", "half"),
    [("bf16", None, True), ("bf16", "float32", False), ("auto", None, False)],
)
def test_answers_are_computed_as_in_training(precision, dtype, half, tmp_path, monkeypatch):
    """Unless fp32 was asked for by name; auto is autocast on a GPU only."""
    train = {"steps": 1, "learning_rate": 1e-3, "precision": precision}
    reasoner("llama", "no_cot", train=train).save_pretrained(tmp_path)
    loaded, seen = Reasoner.from_pretrained(tmp_path, dtype=dtype), []
    forward = type(loaded.lm).forward

    def watched(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(loaded.lm), "forward", watched)
    loaded.generate("w1 w2", 2)
    assert seen and set(seen) == {half}


@pytest.mark.parametrize(
    ("adapter", "precision", "device", "expected"),
    [
        ("full", "bf16", "cuda", "high"), ("full", "auto", "cuda:0", "high"),
        ("full", "fp32", "cuda", "highest"), ("full", "bf16", "cpu", "highest"),
        ("lora", "bf16", "cuda", "highest"),
    ],
)  # fmt: skip
def test_full_weights_are_multiplied_in_tf32(adapter, precision, device, expected):
    train = {"steps": 1, "learning_rate": 1e-3, "precision": precision}
    try:
        loading.allow_tf32(recipe("no_cot", adapter=adapter, train=train), device)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision("highest")


def test_training_and_answers_allow_it_unless_fp32_was_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "allow_tf32", lambda recipe, device: asked.append(str(device)))
    model = reasoner("llama", "no_cot", train={"steps": 1, "learning_rate": 1e-3, "batch_size": 1})
    train(model, [example(3, 2)], [], tmp_path / "run", False, Progress("", Console(quiet=True)))
    model.save_pretrained(tmp_path / "saved")
    Reasoner.from_pretrained(tmp_path / "saved", dtype="float32")
    assert asked == ["cpu"]
    Reasoner.from_pretrained(tmp_path / "saved")
    assert asked == ["cpu", "cpu"]


def test_a_plain_backbone_is_in_bf16_on_a_gpu(backbone, monkeypatch):
    wanted = []
    monkeypatch.setattr(open_, "default_device", lambda: "cuda")
    monkeypatch.setattr(Reasoner, "from_backbone", lambda *_, device, dtype: wanted.append(dtype))
    open_.open_reasoner(str(backbone))
    open_.open_reasoner(str(backbone), dtype="float32")
    assert wanted == ["bfloat16", "float32"]


def test_a_merged_adapter_scores_the_same_and_is_told(kava, backbone, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    tree = {
        "method": "no_cot", "backbone": str(backbone), "lora": {"r": 4},
        "data": {"train": "synthetic", "train_rows": 8},
        "train": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3},
        "eval": {"max_new_tokens": 4},
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    status, said = kava("train", recipe, "-o", tmp_path / "run")
    assert status == 0 and "device: cpu; weights in float32" in said, said
    found = []
    for merged, words in ((False, ()), (True, ("--merge",))):
        told = kava("eval", tmp_path / "run", "--task", "synthetic", "--limit", 3, *words)
        assert told[0] == 0, told
        score = json.loads((tmp_path / "run/result.json").read_text())["scores"]["synthetic"]
        assert score["merged"] is merged
        found.append((tmp_path / "run/predictions/synthetic.jsonl").read_text())
    assert found[0] == found[1]
