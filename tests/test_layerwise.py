"""Layers that are made anew in the backward pass, compiled, or both, train as they are."""

import logging
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from refusals import refused
from tiny import bare, batch, lora, reasoner, stepped, wrap
from torch._dynamo.backends.debugging import aot_eager_decomp_partition

from kava.backbones import layerwise
from kava.backbones.tiny import tiny_backbone
from kava.runs.folder import read_metrics

# torch itself gives several while it compiles
pytestmark = pytest.mark.filterwarnings("default")

ROWS = [stepped(4, (3, 2, 4)), stepped(6, (2,), 1, "12"), stepped(3, (3, 3), 2)]


def step(model, again=False, compiled=False, rows=ROWS):
    """Terms and gradients of one step in training mode."""
    layerwise.enable(model.lm, again, compiled)
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    terms = model(**model.apply_stage(batch(model, rows), 1.0))
    terms["loss"].backward()
    return terms, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one, other):
    for (terms, gradients), (their_terms, theirs) in [(one, other)]:
        for name, value in terms.items():
            torch.testing.assert_close(value, their_terms[name], rtol=1e-5, atol=1e-6)
        assert gradients.keys() == theirs.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def test_every_family_and_method_trains_alike(pair, caplog):
    with caplog.at_level(logging.WARNING):
        assert_same(step(reasoner(*pair), again=True), step(reasoner(*pair)))
    assert "incompatible" not in caplog.text


@pytest.mark.parametrize("method", ("kava", "codi", "lotus"))
def test_adapters_with_dropout_too(method):
    changes = lora(dropout=0.3)
    one, other = (reasoner("llama", method, **changes) for _ in range(2))
    assert_same(step(one, again=True), step(other))


def held(model, checkpointed):
    """Bytes that autograd keeps for the backward pass, the weights themselves left out."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    layerwise.enable(model.lm, checkpointed, False)
    model.train()
    staged = model.apply_stage(batch(model, ROWS))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**staged)["loss"]
    total = sum(kept.values())
    loss.backward()
    return total


def test_less_is_held_between_the_passes():
    deep = {"num_hidden_layers": 6, "intermediate_size": 256}
    sizes = [held(wrap(bare("llama", **deep)), on) for on in (True, False)]
    assert sizes[0] < 0.6 * sizes[1]


def test_answers_are_not_touched():
    model = reasoner("llama", "kava")
    before = model.generate(["w1 w2", "w3"], 5)
    layerwise.enable(model.lm, True, False)
    assert model.eval().generate(["w1 w2", "w3"], 5) == before


def test_layers_that_are_not_found_are_told_of(monkeypatch):
    model = reasoner("llama", "kava")
    model.lm.config.num_hidden_layers = 3
    with refused("backbones.no-layers", "llama") as told:
        layerwise.enable(model.lm, True, False)
    assert "3 layers" in str(told.value)


# -- compiled ------------------------------------------------------------------------------------


class Graphs:
    """Stands for inductor up to its kernels; counts how often each compiled graph runs."""

    def __init__(self):
        self.runs = []

    def __call__(self, module, inputs):
        inner, number = aot_eager_decomp_partition(module, inputs), len(self.runs)
        self.runs.append(0)

        def run(*given):
            self.runs[number] += 1
            return inner(*given)

        return run


@pytest.fixture(scope="module")
def counted():
    """One for all tests: what is compiled for one is there for the next."""
    return Graphs()


@pytest.fixture
def graphs(counted, monkeypatch):
    monkeypatch.setattr(layerwise, "BACKEND", counted)
    monkeypatch.setattr(layerwise, "_check_compiler", lambda device: None)
    return counted


def test_compiled_layers_train_alike_and_are_replayed_as_they_ran(graphs):
    """Another version of a layer, as where nothing is recorded, would keep other tensors."""
    plain = step(reasoner("llama", "kava"))
    assert_same(step(reasoner("llama", "kava"), compiled=True), plain)
    once = list(graphs.runs)
    assert sum(once) > 0
    assert_same(step(reasoner("llama", "kava"), again=True, compiled=True), plain)
    assert graphs.runs == [3 * runs for runs in once]


def test_answers_are_not_compiled(graphs):
    model = reasoner("llama", "kava")
    before, runs = model.generate(["w1 w2", "w3"], 5), sum(graphs.runs)
    layerwise.enable(model.lm, False, True)
    assert model.eval().generate(["w1 w2", "w3"], 5) == before
    assert sum(graphs.runs) == runs


@pytest.mark.parametrize(
    ("method", "changes", "autocast"),
    [("kava", {}, False), ("no_cot", lora(dropout=0.5), True)],
    ids=["full", "lora in bf16"],
)
def test_all_layers_share_what_is_compiled(graphs, method, changes, autocast):
    numbers = []
    for layers in (2, 4):
        before = sum(graphs.runs)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            step(wrap(bare("llama", num_hidden_layers=layers), method, **changes), compiled=True)
        numbers.append((len(graphs.runs), sum(graphs.runs) - before))
    assert numbers[1] == (numbers[0][0], 2 * numbers[0][1])


def test_other_lengths_and_batches_need_no_compiling(graphs):
    model = reasoner("llama", "kava")
    known = None
    for rows in (2, 5, 3, 7, 4):  # a second width of the padded mask makes that width a variable
        more = [stepped(5 + n, (3, n + 1, 2), n) for n in range(rows)]
        step(model, compiled=True, rows=more)
        known = len(graphs.runs) if rows in (2, 5) else known
    assert len(graphs.runs) == known


def test_layers_of_two_kinds_are_compiled_too(graphs):
    """A window on one of them, soft caps on both."""
    before = sum(graphs.runs)
    one, other = reasoner("gemma2", "no_cot"), reasoner("gemma2", "no_cot")
    assert_same(step(one, compiled=True), step(other))
    assert sum(graphs.runs) > before


@pytest.fixture
def recipe(tmp_path):
    tiny_backbone("llama", tmp_path / "backbone")
    tree = {
        "method": "cot", "backbone": str(tmp_path / "backbone"), "adapter": "full",
        "data": {"train": "synthetic", "train_rows": 4},
        "train": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


def test_a_training_is_compiled_for_real(kava, recipe, tmp_path):
    """By inductor, from the command; the same terms as without."""
    logs = []
    for how in ("false", "true"):
        status, said = kava("train", recipe, f"train.compile={how}", "-o", tmp_path / how)
        assert status == 0, said
        logs.append(read_metrics(tmp_path / how))
    ((one, *_), (other, *_)) = logs
    for name in ("loss", "grad_norm"):
        assert one[name] == pytest.approx(other[name], rel=1e-5)


@pytest.mark.processes
def test_a_machine_without_a_compiler_is_told(recipe, tmp_path):
    env = {**os.environ, "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "none")}
    command = [sys.executable, "-m", "kava", "train", recipe, "train.compile=true"]
    done = subprocess.run(
        [*command, "-o", tmp_path / "run"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"kava: train\.compile: torch cannot compile on this machine \(.*/no/compiler.*\); it .*\n",
        done.stderr,
    )
