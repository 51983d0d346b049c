"""FLOPs of a step: counted while it runs, and the least that its method needs.

A multiplication and an addition are two. Matrix products and attention count, as PyTorch's counter
has them; what works value by value (norms, activations, losses) does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from kava.errors import KavaError
from kava.reasoning.methods import Work
from kava.reasoning.reasoner import Reasoner


def _attended(query: Sequence[int], keys: Sequence[int]) -> int:
    """One product of attention: [B, H, n, D] with [B, *, S, D], masked or not."""
    batch, heads, columns, size = query
    return 2 * batch * heads * columns * keys[2] * size


def _forward(query: Sequence[int], keys: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _attended(query, keys)


def _backward(gradient: Any, query: Sequence[int], keys: Sequence[int], *_: Any, **__: Any) -> int:
    # Five products: the weights once more, since they are not kept, and four gradients.
    return 5 * _attended(query, keys)


# PyTorch counts its attention for GPUs and passes over the one for CPUs.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def count_flops(work: Callable[[], Any], attention: bool = True) -> int:
    """FLOPs of `work`, which is run once; on CPUs, attention is left out if not asked for."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU if attention else None) as counter:
        work()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Cost:
    """FLOPs of one unit of each kind of work, backward pass included where `training`.

    column: one column through the layers; pair: one query and key of attention in all layers;
    label: one position's logits; latent: one latent through P.
    """

    column: float
    pair: float
    label: float
    latent: float

    def of(self, work: Work) -> float:
        """FLOPs of so much work."""
        return (
            self.column * work.columns
            + self.pair * work.pairs
            + self.label * work.labels
            + self.latent * work.projected
        )


def cost(reasoner: Reasoner, training: bool) -> Cost:
    """What each unit costs a reasoner, at the least."""
    return cost_of(reasoner.lm, reasoner.projection, training)


def cost_of(lm: Any, projection: nn.Module, training: bool) -> Cost:
    """What the backbone's shape and the adapter make each unit cost, at the least.

    A product costs two FLOPs per weight forward; in training as many for the gradient of its
    input, and again for that of its weight where that is trained. Attention is two products
    forward and five backward: its weights are made anew, since keeping them is ruled out. Grouped
    heads cost what other heads do. Only shapes are read: the weights may be without values.

    Args:
        lm: with its adapter's layers inside.
        projection: P.

    Raises:
        KavaError: layers with products that are none of `nn.Linear`, such as those of experts.
    """
    _check(lm)
    head = lm.get_output_embeddings().weight
    of_layers = _products(lm.base_model, training)
    shape = lm.config.get_text_config()
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    pair = 2 * size * shape.num_attention_heads * shape.num_hidden_layers * (7 if training else 2)
    return Cost(
        column=of_layers,
        pair=pair,
        label=2 * head.numel() * _times(head, training),
        latent=_products(projection, training),
    )


def _check(lm: Any) -> None:
    inside = (nn.Linear, Conv1D, nn.Embedding)
    for name, module in lm.base_model.named_modules():
        own = [weight for weight in module.parameters(recurse=False) if weight.dim() > 1]
        if own and not isinstance(module, inside):
            raise KavaError(
                f"FLOPs of this {lm.config.model_type} cannot be counted: {name} is no linear "
                "layer; give a backbone without experts",
                code="bench.flops-not-counted",
                key=name,
            )


def _products(module: nn.Module, training: bool) -> float:
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | Conv1D))
    return sum(2 * m.weight.numel() * _times(m.weight, training) for m in layers)


def _times(weight: torch.Tensor, training: bool) -> int:
    return 1 + training * (1 + weight.requires_grad)
