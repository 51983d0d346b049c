"""A finished run that writes is a backbone: the weights it ended with, adapter merged."""

import json

import pytest
import torch
from refusals import refused
from tiny import bare, batch, example, lora, recipe, tokenizer

from kava.backbones import loading
from kava.reasoning.reasoner import Reasoner, load_backbone
from kava.sweeps.cost import Estimator

IDS = torch.tensor([[5, 20, 33, 41, 7, 9]])


@pytest.fixture
def finish(tmp_path):
    """Train a method for two steps from a backbone on disk; the run folder and its model."""

    def run(method, **changes):
        bare("llama").save_pretrained(tmp_path / "base")
        tokenizer().save_pretrained(tmp_path / "base")
        changes = {"backbone": str(tmp_path / "base"), **changes}
        reasoner = Reasoner.build(recipe(method, **changes)).eval()
        trained = [p for p in reasoner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            reasoner(**batch(reasoner, [example(4, 6), example(7, 3)]))["loss"].backward()
            optimizer.step()
        reasoner.save_pretrained(tmp_path / "run" / "checkpoint")
        return tmp_path / "run", reasoner

    return run


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("adapter", ({}, lora()), ids=("full", "lora"))
def test_it_is_the_model_that_was_trained(finish, adapter):
    run, reasoner = finish("cot", **adapter)
    model, _, identity = load_backbone(str(run), None, torch.float32)
    torch.testing.assert_close(logits(model), logits(reasoner.lm), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), logits(loading.prepare(bare("llama"))), atol=1e-2)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert identity["name"] == str(run)


def test_in_bf16_its_weights_alone_are_rounded(finish):
    run, reasoner = finish("cot")
    model, _, identity = load_backbone(str(run), None, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert identity["fingerprint"] == loading.fingerprint(reasoner.lm)
    kept = dict(reasoner.lm.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, kept[name])  # a rotation's frequencies


@pytest.mark.parametrize("adapter", ({}, lora()), ids=("full", "lora"))
def test_another_method_starts_from_it_and_comes_back_from_disk(finish, tmp_path, adapter):
    run, _ = finish("cot", **lora())
    second = Reasoner.build(recipe("kava", backbone=str(run), **adapter)).eval()
    second.save_pretrained(tmp_path / "second")
    again = Reasoner.from_pretrained(tmp_path / "second")
    rows = [example(5, 4)]
    with torch.no_grad():
        first, loaded = (r(**batch(r, rows))["loss"] for r in (second, again))
    torch.testing.assert_close(loaded, first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("adapter", ({}, lora()), ids=("full", "lora"))
def test_the_cost_of_a_training_that_starts_from_it_is_that_of_its_backbone(
    finish, tmp_path, adapter
):
    run, _ = finish("cot", **adapter)
    row = {"question": "w1 w2 w3", "steps": ["<< 1 + 2"], "answer": "3"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    changes = {"data": {"train": str(file)}, "family": "llama"}
    found = Estimator().cost(recipe("kava", backbone=str(run), **changes))
    before = Estimator().cost(recipe("kava", backbone=str(tmp_path / "base"), **changes))
    assert found == before and found.token_forwards and found.notes == ()


def test_a_run_that_thinks_in_latents_is_refused(finish):
    run, _ = finish("pccot")
    with refused("reasoning.latent-backbone") as caught:
        load_backbone(str(run), None, torch.float32)
    assert "'pccot'" in str(caught.value)
