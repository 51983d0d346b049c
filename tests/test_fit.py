"""How many examples are in memory at once, where a recipe leaves it open."""

import io

import pytest
import torch
from accelerator import accelerator
from rich.console import Console
from tiny import example, lora, reasoner

from kava.runs.folder import read_metrics
from kava.system.progress import Progress
from kava.training import fit, memory
from kava.training.fit import SHARE, choose_rows, free_device_memory
from kava.training.step import micro_batches
from kava.training.trainer import train

ROWS = [example(3 + i % 7, 2 + i % 5, i) for i in range(24)]
TRAIN = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "log_every": 1}


def thinker(method="kava", **changes):
    return reasoner("llama", method, **lora(), train={**TRAIN, **changes})


def needed(model, size):
    """Counted on the widest micro-batch that there can be: as wide as the widest examples."""
    rows = model.encoder.rows(ROWS)
    widest = max(rows, key=lambda row: row.columns)
    batches = micro_batches(model, [widest] * min(8, 2 * size), size)
    counted = memory.count(model, batches, False, on_gpu=True)
    return counted.total - counted.weights


def test_the_most_examples_that_fit_are_chosen():
    model = reasoner("llama", "kava", **lora(), train=TRAIN, num_latents=1, num_iterations=1)
    rows = model.encoder.rows(ROWS)
    whole = choose_rows(model, rows, 10**12)
    assert whole.rows == 8 and whole.needed == pytest.approx(needed(model, 8), rel=0.1)
    for size, free in ((8, whole.needed / SHARE + 1), (4, whole.needed / SHARE - 1), (1, 1)):
        found = choose_rows(model, rows, int(free))
        assert (found.rows, found.free) == (size, int(free))
        assert found.needed == pytest.approx(needed(model, size), rel=0.1)
    assert "4 of 8 rows at once" in choose_rows(model, rows, int(whole.needed)).describe(8)


def test_counting_changes_nothing():
    model = thinker()
    rows = model.encoder.rows(ROWS)
    inputs = micro_batches(model, rows[:4], 4)[0]
    before = model(**inputs)["loss"]
    names = [name for name, _ in model.named_parameters()]
    choose_rows(model, rows, 10**12)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(p.grad is None and type(p) is torch.nn.Parameter for p in model.parameters())
    assert torch.equal(model(**inputs)["loss"], before)


@pytest.mark.parametrize(("processes", "sizes"), [(2, {4, 2, 1}), (8, {1})])
def test_a_batch_is_shared_by_processes(processes, sizes):
    model = thinker("cot")
    rows = model.encoder.rows(ROWS)
    whole = choose_rows(model, rows, 10**12, processes).needed
    found = {choose_rows(model, rows, int(whole * part), processes).rows for part in (2, 0.8, 0)}
    assert found <= sizes and {max(sizes), 1} <= found


def test_the_largest_stage_decides():
    options = {"latents_per_stage": 2, "max_stage": 2, "epochs_per_stage": 1}
    staged = reasoner("llama", "coconut", train=TRAIN, num_latents=4, method_options=options)
    rows = staged.encoder.rows([example(5, 40, i) for i in range(8)])
    last = memory.count(staged, micro_batches(staged, rows, 8), False, on_gpu=True)
    first = memory.count(staged, micro_batches(staged, rows, 8, 0.0), False, on_gpu=True)
    assert first.total > last.total, "with the whole chain of thought"
    assert choose_rows(staged, rows, 10**12).needed == first.total - first.weights


def test_the_choice_is_that_of_the_model_on_its_device():
    model = thinker()
    rows = model.encoder.rows(ROWS)
    expected = choose_rows(model, rows, 10**12)
    with accelerator() as device:
        assert choose_rows(model.to(device), rows, 10**12) == expected


def test_memory_of_a_cpu_is_not_asked(monkeypatch):
    assert free_device_memory(torch.device("cpu")) is None
    for name, value in (("memory_reserved", 7), ("memory_allocated", 5)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    assert free_device_memory(torch.device("cuda")) == 102  # and what the allocator keeps unused


def trained(folder, resume=False, stop=None, **changes):
    console = Console(file=io.StringIO(), soft_wrap=True)
    model = thinker("cot", save_every=2, **changes)
    measured = train(model, ROWS, [], folder, resume, Progress("", console))
    losses = {one["step"]: one["loss"] for one in read_metrics(folder) if "loss" in one}
    return measured, losses, console.file.getvalue()


def test_a_training_holds_the_global_batch_and_keeps_the_choice(tmp_path, monkeypatch):
    _, plain, said = trained(tmp_path / "plain")
    assert "8 rows at once" in said and "is null" not in said
    rows = thinker("cot").encoder.rows(ROWS)
    little = int(choose_rows(thinker("cot"), rows, 10**12).needed)
    monkeypatch.setattr(fit, "free_device_memory", lambda device: little)
    measured, losses, said = trained(tmp_path / "fit")
    assert measured["rows_at_once"] == 4 and losses.keys() == {1, 2, 3, 4}
    assert "; 4 rows at once; " in said and "is null: 4 of 8 rows at once" in said
    assert losses == pytest.approx(plain, rel=1e-5)

    monkeypatch.setattr(fit, "free_device_memory", lambda device: 10**12)
    (tmp_path / "fit/checkpoints/checkpoint-4").rename(tmp_path / "last")
    measured, _, said = trained(tmp_path / "fit", resume=True)
    assert (measured["resumed_from"], measured["rows_at_once"]) == (2, 4)
    assert "is null" not in said
    measured, *_ = trained(tmp_path / "given", micro_batch_size=2)
    assert measured["rows_at_once"] == 2
