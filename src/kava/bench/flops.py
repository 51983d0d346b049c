"""FLOPs of a step: as counted while it runs, and the minimum that its method needs.

A multiplication and an addition are two FLOPs. Matrix products and attention are counted, as in
PyTorch's counter; elementwise operations (norms, activations, losses) are not.
"""

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


def _attention_product(query: Sequence[int], keys: Sequence[int]) -> int:
    """Return the FLOPs of one product of attention, masked or not.

    Args:
        query: shape [batch, heads, columns, head_dim].
        keys: shape [batch, any, key_columns, head_dim].
    """
    batch, heads, columns, size = query
    return 2 * batch * heads * columns * keys[2] * size


def _forward(query: Sequence[int], keys: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _attention_product(query, keys)


def _backward(gradient: Any, query: Sequence[int], keys: Sequence[int], *_: Any, **__: Any) -> int:
    # Five products: the attention weights recomputed, since they are not kept, and four gradients.
    return 5 * _attention_product(query, keys)


# PyTorch's counter knows its attention kernels for GPUs, but not those for CPUs.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def count_flops(work: Callable[[], Any], attention: bool = True) -> int:
    """Run `work` once and return its FLOPs.

    Args:
        attention: whether to count attention on CPUs; on GPUs it is always counted.
    """
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU if attention else None) as counter:
        work()
    return counter.get_total_flops()


@dataclass(frozen=True)
class UnitCost:
    """FLOPs of one unit of each kind of work, including the backward pass if `training`.

    column: one column through the layers.
    pair: one pair of query and key of attention, in all layers.
    label: the logits of one position.
    latent: one latent through the projection P.
    """

    column: float
    pair: float
    label: float
    latent: float

    def flops(self, work: Work) -> float:
        """Return the FLOPs of this amount of work."""
        return (
            self.column * work.columns
            + self.pair * work.pairs
            + self.label * work.labels
            + self.latent * work.num_projected
        )


def cost(reasoner: Reasoner, training: bool) -> UnitCost:
    """Return the minimum cost of each unit of work, from the backbone's shape and the adapter.

    A matrix product costs two FLOPs per weight in the forward pass. In training, the gradient of
    its input costs as much again, and so does the gradient of its weight if that is trained.
    Attention is two products in the forward pass and five in the backward pass: attention weights
    are recomputed there, since they may not be kept. Grouped heads cost as much as other heads.

    Raises:
        KavaError: layers with matrix products other than `nn.Linear`, such as mixtures of experts.
    """
    lm: Any = reasoner.lm
    _check(lm)
    head = lm.get_output_embeddings().weight
    of_layers = _flops_of_linear_layers(lm.base_model, training)
    shape = lm.config.get_text_config()
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    pair = 2 * size * shape.num_attention_heads * shape.num_hidden_layers * (7 if training else 2)
    return UnitCost(
        column=of_layers,
        pair=pair,
        label=2 * head.numel() * _products_per_weight(head, training),
        latent=_flops_of_linear_layers(reasoner.projection, training),
    )


def _check(lm: Any) -> None:
    inside = (nn.Linear, Conv1D, nn.Embedding)
    for name, module in lm.base_model.named_modules():
        own = [weight for weight in module.parameters(recurse=False) if weight.dim() > 1]
        if own and not isinstance(module, inside):
            raise KavaError(
                f"FLOPs of this {lm.config.model_type} cannot be counted: {name} is not a linear "
                "layer; use a backbone without experts",
                code="bench.flops-not-counted",
                key=name,
            )


def _flops_of_linear_layers(module: nn.Module, training: bool) -> float:
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | Conv1D))
    return sum(2 * m.weight.numel() * _products_per_weight(m.weight, training) for m in layers)


def _products_per_weight(weight: torch.Tensor, training: bool) -> int:
    return 1 + training * (1 + weight.requires_grad)
