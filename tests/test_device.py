"""Where a command computes: what it says of it, and that it never falls back to the CPU."""

import os
from types import SimpleNamespace

import accelerate
import pytest
import torch
from refusals import refused
from tiny import bare
from torch.distributed.fsdp import MixedPrecisionPolicy

from kava.backbones.device import describe
from kava.system import distributed, environment, sharded


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

    def state(cpu):
        seen.append((cpu, os.environ["LOCAL_RANK"]))

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


def test_fsdp_reduces_gradients_in_fp32():
    plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16))
    sharded.keep_precision(plugin)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (None, torch.float32)
    assert policy.output_dtype is None and not policy.cast_forward_inputs
    sharded.keep_precision(None)


def test_the_kernel_of_this_machine_is_found():
    assert describe(bare("llama"), autocast=False, rows=1).endswith(("flash", "plain operations"))
