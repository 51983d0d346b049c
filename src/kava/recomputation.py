"""Activations of a layer made anew in the backward pass, together with a cache that grows.

transformers takes the cache away from layers under gradient checkpointing, since a replayed layer
would append its keys and values twice. Here a layer gets a cache of its own for each run, begun
from the tensors that were there before, and what it appends comes through as its output: the cache
is then part of the graph like any other tensor, and the replay appends to nothing that is kept
(ours).
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from kava import cache
from kava.errors import KavaError


def switch_on(model: PreTrainedModel) -> None:
    """Keep each layer's inputs and its part of the cache alone, while the model trains.

    Gradients stay what they are; a step computes every layer's forward pass twice.

    Raises:
        KavaError: the layers are not of the kind that transformers can checkpoint.
    """
    layers = [m for m in model.base_model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise KavaError(
            f"train.gradient_checkpointing: the layers of a {model.config.model_type} cannot be "
            "checkpointed; leave it false"
        )
    for index, layer in enumerate(layers):
        # By this flag transformers leaves the cache to `_again`.
        layer.gradient_checkpointing = layer._can_checkpoint_with_cache = True
        layer._gradient_checkpointing_func = partial(_again, index)
    _on.add(model)


def is_on(model: PreTrainedModel) -> bool:
    """Whether this model's layers are checkpointed now."""
    return model.training and model in _on


_on: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


def _again(index: int, call: partial, *inputs: Any) -> Any:
    """Run a layer now, and once more when its gradients are asked for.

    Args:
        index: of the layer in the cache.
        call: its forward pass with what is given by name; inputs: the rest. One is the cache.
    """
    (held,) = filter(cache.is_one, (*inputs, *call.keywords.values()))
    before = cache.layer(held, index)

    def run() -> tuple[Any, Tensor, Tensor]:
        own = cache.of_layer(index, before)
        given = [own if one is held else one for one in inputs]
        named = {name: own if one is held else one for name, one in call.keywords.items()}
        return call.func(*call.args, *given, **named), *cache.layer(own, index)

    output, keys, values = checkpoint(run, use_reentrant=False)
    cache.put(held, index, keys, values)
    return output
