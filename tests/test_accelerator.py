"""On a device of its own everything gives what it gives on the CPU, and training does not wait.

No GPU is needed: `accelerator` is a device that the CPU computes for. Whatever mixes tensors of the
two, as a mask that was left behind, raises there as on a GPU.
"""

import json

import accelerate
import pytest
import torch
import yaml
from accelerator import accelerator, copies, forget, waits
from parallel_worker import train
from refusals import refused
from safetensors.torch import load_file
from tiny import FAMILIES, batch, example, lora, reasoner, recipe, stepped, words

from kava.reasoning import open as open_
from kava.reasoning.batching import to_device
from kava.recipe import registry
from kava.runs.folder import read_metrics
from kava.system import environment
from kava.training import run, trainer
from kava.training.arguments import arguments

EXAMPLES = [
    example(4, 9), example(9, 3, 1, "1 2 3"), example(2, 0, 2), stepped(6, (2, 4, 1), 3, "4 5"),
]  # fmt: skip
QUESTIONS = [words(4, 0), words(9, 1), words(2, 2)]
METHODS = registry.names("methods")


@pytest.fixture
def device():
    with accelerator() as device:
        yield device


def on(device, model):
    """Moved; what that counts is forgotten."""
    moved = model.to(device)
    forget()
    return moved


def test_what_is_left_on_the_cpu_is_seen(device):
    there = torch.ones(3, device=device)
    for mistake in (lambda: there + torch.ones(3), lambda: there[torch.tensor([0, 1])]):
        with pytest.raises(RuntimeError, match="on the same device"):
            mistake()
    assert (there + 1).tolist() == [2.0] * 3 and sum(waits.values()) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_that_of_the_cpu_and_does_not_wait(device, method):
    model = reasoner("llama", method, **lora())
    inputs = batch(model, EXAMPLES)
    expected = gradients(model, inputs)
    found = gradients(on(device, model), to_device(inputs, device))
    assert not waits and not copies
    assert found.keys() == expected.keys()
    for name, value in found.items():
        wanted = expected[name]
        scale = wanted.abs().max().item()
        torch.testing.assert_close(value.cpu(), wanted, rtol=0, atol=1e-4 * scale, msg=name)


def gradients(model, inputs):
    """Return the gradients of a step after `apply_stage`; nothing before it counts."""
    model.zero_grad()
    inputs = model.apply_stage(inputs)
    forget()
    loss = model(**inputs, counts=model.method.counts(inputs))["loss"]
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize(("family", "method"), [
    *((family, "kava") for family in FAMILIES), *(("llama", m) for m in METHODS if m != "kava"),
])  # fmt: skip
def test_answers_are_those_of_the_cpu(device, family, method):
    model = reasoner(family, method)
    expected = model.generate(QUESTIONS, max_new_tokens=6)
    model = on(device, model)
    assert model.generate(QUESTIONS, max_new_tokens=6) == expected


def test_thinking_waits_for_nothing_and_an_answer_twice_for_each_token(device):
    model = on(device, reasoner("llama", "kava"))
    reasoning = model.think(QUESTIONS)
    assert not waits
    counted = []
    for tokens in (4, 9):
        forget()
        model.continue_from(reasoning, max_new_tokens=tokens, min_new_tokens=tokens)
        counted.append(sum(waits.values()))
    # Both are transformers' own: whether a mask hides anything, and whether all rows have ended.
    assert counted[1] - counted[0] <= 2 * 5


@pytest.fixture
def placed(device, monkeypatch):
    """Runs train and are opened on the device; the Trainer, which knows no such one, is told."""
    made, joined = trainer.arguments, accelerate.PartialState.__init__

    def told(*args, **kwargs):
        given = made(*args, **kwargs)
        given.__dict__["_setup_devices"] = device
        return given

    def join(state, *args, **kwargs):
        joined(state, *args, **kwargs)
        state.device = device

    def reset():
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)

    with monkeypatch.context() as patched:
        for module in (run, open_):
            patched.setattr(module, "default_device", lambda: str(device))
        patched.setattr(trainer, "arguments", told)
        patched.setattr(accelerate.PartialState, "__init__", join)
        reset()
        yield device
        reset()


TREE = {
    "data": {"train": "synthetic", "train_rows": 8, "validation": "synthetic",
             "validation_rows": 4},
    "train": {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3,
              "log_every": 1, "save_every": 2, "gradient_checkpointing": True},
    "eval": {"every": 2, "batch_size": 4, "max_new_tokens": 4},
}  # fmt: skip
RUNS = {
    "kava": {"adapter": "lora", "lora": {"r": 4}, "num_latents": 6, "num_iterations": 2,
             "codi": {"weight": 1.0}, "kv": {"weight": 1.0}},
    "lotus": {"adapter": "full", "num_latents": 6, "latent_readout": {"weight": 0.3, "width": 3},
              "method_options": {"epochs_per_stage": 0.5}},
    "cot": {"adapter": "full"},
}  # fmt: skip


@pytest.mark.parametrize("method", RUNS)
def test_a_training_is_that_of_the_cpu_and_goes_on_from_it(method, backbone, tmp_path, request):
    file, here, there = tmp_path / "recipe.yaml", tmp_path / "cpu", tmp_path / "there"
    tree = {"method": method, "backbone": str(backbone), **TREE, **RUNS[method]}
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    train(file, here)
    device = request.getfixturevalue("placed")
    train(file, there, stop_after=3)
    train(file, there, resume=True)
    assert losses(there) == pytest.approx(losses(here), rel=1e-3)
    copies = [load_file(folder / "checkpoint" / "kava.safetensors") for folder in (here, there)]
    assert copies[0].keys() == copies[1].keys()
    for name, weight in copies[0].items():
        torch.testing.assert_close(copies[1][name], weight, rtol=1e-2, atol=1e-4)
    assert open_.open_reasoner(str(there)).device == device


def losses(folder):
    return [r["loss"] for r in read_metrics(folder) if "loss" in r]


CHECKPOINT = "checkpoints/quickstart/kava"
QUESTION = (
    "Tuesday brought Ann 3 more than Monday. Monday brought Ann 4 pens. "
    "How many pens did Tuesday bring Ann?"
)
COMMANDS = {
    "eval": ("eval", CHECKPOINT, "--task", "synthetic", "--limit", 3, "-o"),
    "ablate": ("ablate", CHECKPOINT, "--task", "synthetic", "--limit", 3, "-o"),
    "inspect": ("inspect", CHECKPOINT, "--task", "synthetic", "--id", "synthetic-test-4", "-o"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_measured_there_is_what_is_measured_here(name, kava, tmp_path, request):
    ends = {"inspect": "page.html"}.get(name, "folder")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "there").mkdir()
    assert kava(*COMMANDS[name], tmp_path / "cpu" / ends)[0] == 0
    request.getfixturevalue("placed")
    status, said = kava(*COMMANDS[name], tmp_path / "there" / ends)
    assert status == 0, said
    assert told(tmp_path / "there") == told(tmp_path / "cpu")


def told(folder):
    """Answers by file; of a page what it holds, up to the rounding of attention's kernels."""
    found = {}
    for file in sorted(folder.rglob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[str(file.relative_to(folder))] = [(r["id"], r["prediction"]) for r in rows]
    return found or len(next(folder.glob("*.html")).read_text(encoding="utf-8")) > 10_000


def test_a_launcher_may_keep_a_process_off_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert environment.default_device() == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # accelerate launch --cpu
    assert environment.default_device() == "cpu"


def test_of_several_gpus_a_process_takes_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    settings = {"batch_size": 8, "precision": "fp32", "steps": 1, "learning_rate": 1e-3}
    given = recipe(train=settings)
    made = arguments(given, tmp_path, torch.device("cuda"), False, 8)
    assert (made.n_gpu, made.train_batch_size) == (1, 8)
    with refused("training.other-gpu", "cuda:1") as told:
        arguments(given, tmp_path, torch.device("cuda:1"), False, 8)
    assert "CUDA_VISIBLE_DEVICES=1" in str(told.value)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
