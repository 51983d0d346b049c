"""Checkpointed activations give the same loss and gradients, with the cache, and hold less."""

import logging

import pytest
import torch
from tiny import bare, batch, lora, reasoner, stepped, wrap

from kava import recomputation, registry
from kava.errors import KavaError

ROWS = [stepped(4, (3, 2, 4)), stepped(6, (2,), 1, "12"), stepped(3, (3, 3), 2)]


def step(model, checkpointed):
    """Terms and gradients of one step in training mode."""
    if checkpointed:
        recomputation.switch_on(model.lm)
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    terms = model(**model.staged(batch(model, ROWS), 1.0))
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
        assert_same(step(reasoner(*pair), True), step(reasoner(*pair), False))
    assert "incompatible" not in caplog.text


@pytest.mark.parametrize("method", ("kava", "codi", "lotus"))
def test_adapters_with_dropout_too(method):
    changes = lora(dropout=0.3)
    assert_same(step(reasoner("llama", method, **changes), True),
                step(reasoner("llama", method, **changes), False))  # fmt: skip


def held(model, checkpointed):
    """Bytes that autograd keeps for the backward pass, the weights themselves left out."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if checkpointed:
        recomputation.switch_on(model.lm)
    model.train()
    staged = model.staged(batch(model, ROWS))
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
    recomputation.switch_on(model.lm)
    assert not recomputation.is_on(model.lm)  # it does not train
    assert model.generate(["w1 w2", "w3"], 5) == before


def test_layers_that_cannot_are_named(monkeypatch):
    model = reasoner("llama", "kava")
    monkeypatch.setattr(recomputation, "GradientCheckpointingLayer", registry.__class__)
    with pytest.raises(KavaError, match="gradient_checkpointing: the layers of a llama cannot"):
        recomputation.switch_on(model.lm)
