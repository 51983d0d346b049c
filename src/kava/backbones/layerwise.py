"""Gradient checkpointing and compilation of a backbone's layers, with a KV cache.

All layers append to one shared cache. If a layer is recomputed in the backward pass, it would
append a second time; transformers therefore disables the cache under gradient checkpointing. If
layers are compiled, each would be compiled separately for its own index in the cache. Here, each
call of a layer gets a cache of its own, which starts with the tensors that were there before, and
the updated keys and values are returned as outputs. They are part of the graph like any other
tensor, can be recomputed safely, and the same code serves all layers (our addition).
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from kava.backbones import attention, cache, structure
from kava.errors import KavaError, first_line

BACKEND = "inductor"  # backend of torch.compile
#: Maximum number of compiled versions of a layer: with and without a cache before it, with queries
#: recorded or not, and both for each kind of layer of a backbone. Beyond this limit, torch.compile
#: would run new versions uncompiled.
VERSIONS = 64


def enable(model: PreTrainedModel, gradient_checkpointing: bool, compile: bool) -> None:
    """Enable gradient checkpointing or compilation of the layers in training mode.

    Args:
        gradient_checkpointing: keep only the inputs of each layer and its part of the cache;
            everything else is recomputed in the backward pass. Gradients are the same, and a step
            computes the forward pass of each layer twice.
        compile: compile the layers with torch.compile, for any batch size and length. Random
            numbers (dropout) differ from those without compilation.

    Raises:
        KavaError: the layers are not found, or torch.compile does not work on this machine.
    """
    if not (gradient_checkpointing or compile):
        return
    run = _run_layer
    if compile:
        _check_compiler(model.device)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS)
        # It would split compiled graphs where gradients are reduced; layers are already separate.
        torch._dynamo.config.optimize_ddp = False
        run = torch.compile(run, dynamic=True, backend=BACKEND)
    if gradient_checkpointing:
        run = partial(
            checkpoint,
            run,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), attention.recompute_context()),
        )
    for index, layer in enumerate(structure.layers(model)):
        layer.forward = partial(_layer_forward, run, layer, index)


def _layer_forward(
    run: Callable[..., Any], layer: nn.Module, index: int, *inputs: Any, **named: Any
) -> Any:
    """Replace a layer's `forward`: run it on its own cache, then update the shared cache."""
    forward = type(layer).forward
    given = dict(enumerate(inputs)) | named
    caches = [place for place, value in given.items() if cache.is_dynamic_cache(value)]
    if not layer.training or not caches:
        return forward(layer, *inputs, **named)
    (place,) = caches
    whole = given[place]
    before = cache.layer(whole, index) or (None, None)
    rest = [value for key, value in given.items() if isinstance(key, int) and key != place]
    if isinstance(place, str):
        named.pop(place)
    output, *pair = run(forward, layer, place, *before, rest, named)
    cache.set_layer(whole, index, *pair)
    return output


def _run_layer(
    forward: Callable[..., Any],
    layer: nn.Module,
    place: int | str,
    keys: Tensor | None,
    values: Tensor | None,
    inputs: list[Any],
    named: dict[str, Any],
) -> tuple[Any, Tensor, Tensor]:
    """Run a layer on a cache of its own.

    Args:
        forward: the `forward` function of the layer's class.
        layer: the layer.
        place: position or name of the cache among the arguments.
        keys, values: keys and values before; None if there are none.
        inputs, named: the other arguments.

    Returns:
        The output of the layer, and its keys and values with the new columns,
        [batch, kv_heads, columns, head_dim] each.
    """
    own = cache.OneLayer(keys, values)
    if isinstance(place, int):
        inputs = [*inputs[:place], own, *inputs[place:]]
    else:
        named = {**named, place: own}
    return forward(layer, *inputs, **named), own.keys, own.values


def _check_compiler(device: torch.device) -> None:
    """Check that torch.compile works on this machine, by compiling a small function.

    Raises:
        KavaError: it does not.
    """
    try:
        torch.compile(torch.sin, backend=BACKEND)(torch.zeros(2, device=device))
    except Exception as error:  # a missing compiler raises various types of errors
        raise KavaError(
            f"train.compile: torch cannot compile on this machine ({first_line(error)}); it "
            "needs a C++ compiler and the Python headers, and Triton on GPUs; otherwise set "
            "train.compile=false",
            code="backbones.no-compiler",
            key="train.compile",
        ) from None
