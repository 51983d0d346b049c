"""How a backbone's layers run while it trains: made anew in the backward pass, compiled, or both.

A layer appends to a cache that all of them share. Replayed, it would append a second time, so
transformers takes the cache away under gradient checkpointing; compiled, it would be compiled for
its own place in the cache, every layer anew. Here each run of a layer gets a cache of its own,
begun from the tensors that were there before, and what it has become comes through as an output:
part of the graph like any other tensor, replayed without harm, and the same code for all layers
(ours).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from kava.backbones import attention, cache, structure
from kava.errors import KavaError

BACKEND = "inductor"  # of torch.compile
#: Versions of a layer's code that torch may keep: with and without a cache before it, with queries
#: recorded or not, and both for each kind of layer that a backbone has. Beyond, it would compile no
#: further and run what is new uncompiled.
VERSIONS = 64


def enable(model: PreTrainedModel, gradient_checkpointing: bool, compile: bool) -> None:
    """Let the layers run this way whenever the model is in training mode.

    Args:
        gradient_checkpointing: keep only each layer's inputs and its part of the cache; the rest
            is recomputed in the backward pass. Gradients are the same, and a step computes every
            layer's forward pass twice.
        compile: by torch.compile, for any batch and length. Random numbers (dropout) are others
            than without.

    Raises:
        KavaError: the layers are not to be found, or nothing can be compiled on this machine.
    """
    if not (gradient_checkpointing or compile):
        return
    run = _alone
    if compile:
        _check_compiler(model.device)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS)
        # It would cut what is compiled where gradients are sent off; each layer is a piece already.
        torch._dynamo.config.optimize_ddp = False
        run = torch.compile(run, dynamic=True, backend=BACKEND)
    if gradient_checkpointing:
        run = partial(
            checkpoint,
            run,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), attention.replayed()),
        )
    for index, layer in enumerate(structure.layers(model)):
        layer.forward = partial(_in_its_place, run, layer, index)


def _in_its_place(
    run: Callable[..., Any], layer: nn.Module, index: int, *inputs: Any, **named: Any
) -> Any:
    """A layer's `forward`: run it on its part of the cache, and put there what that has become."""
    forward = type(layer).forward
    given = dict(enumerate(inputs)) | named
    held = [place for place, value in given.items() if cache.is_one(value)]
    if not layer.training or not held:
        return forward(layer, *inputs, **named)
    (place,) = held
    whole = given[place]
    before = cache.layer(whole, index) or (None, None)
    rest = [value for key, value in given.items() if isinstance(key, int) and key != place]
    if isinstance(place, str):
        named.pop(place)
    output, keys, values = run(forward, layer, place, *before, rest, named)
    cache.put(whole, index, keys, values)
    return output


def _alone(
    forward: Callable[..., Any],
    layer: nn.Module,
    place: int | str,
    keys: Tensor | None,
    values: Tensor | None,
    inputs: list[Any],
    named: dict[str, Any],
) -> tuple[Any, Tensor, Tensor]:
    """A layer's output, and its keys and values [B, H, S, D] with the new columns.

    Args:
        place: of the cache among the arguments, a position or a name.
        keys, values: before; None where there are none.
    """
    own = cache.OneLayer(keys, values)
    if isinstance(place, int):
        inputs = [*inputs[:place], own, *inputs[place:]]
    else:
        named = {**named, place: own}
    return forward(layer, *inputs, **named), own.keys, own.values


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(torch.sin, backend=BACKEND)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing compiler comes to be called
        (first, *_) = str(error).strip().splitlines() or [type(error).__name__]
        raise KavaError(
            f"train.compile: torch cannot compile on this machine ({first[:200]}); it needs a C++ "
            "compiler and Python's headers, on GPUs Triton too; else leave it false",
            code="backbones.no-compiler",
            key="train.compile",
        ) from None
