"""Trained projections: from a hidden state to the next latent's input, and of keys and values."""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from kava.backbones.cache import KeyValues


class Projection(nn.Module):
    """Projection P of latents: Linear(d, p) - GELU - Linear(p, d) - LayerNorm.

    The layers are those of the code of PCCoT and CODI; see docs/papers.md, Latents.

    Args:
        kind: `none` (identity), `mlp` (without LayerNorm) or `mlp_layernorm`.
        size: hidden size d.
        inner: p; d by default.
        scale: initial gain of the LayerNorm. With the root mean square of the backbone's
            embeddings, latents start at the scale of the embeddings that the backbone was trained
            on. This is our choice; the paper does not specify it.
    """

    def __init__(self, kind: str, size: int, inner: int | None, scale: float):
        super().__init__()
        inner = inner or size
        self.layers = nn.Sequential()
        if kind != "none":
            self.layers.extend([nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size)])
        if kind == "mlp_layernorm":
            norm = nn.LayerNorm(size)
            nn.init.constant_(norm.weight, scale)
            self.layers.append(norm)

    def forward(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., hidden] to latent inputs [..., hidden]."""
        weight = next(self.parameters(), None)
        return self.layers(hidden if weight is None else hidden.to(weight.dtype))


class KvProjection(nn.Module):
    """Projection of the student's keys and values before the comparison (`kv.projection`).

    This is our addition. Each layer has one linear map for keys and one for values, over all heads
    together, initialized to the identity. It is part of the loss only and is not used at inference.

    Args:
        kind: `linear` or `linear_layernorm`.
        shapes: (kv_heads, head_dim) of each layer's cache.
    """

    def __init__(self, kind: str, shapes: list[tuple[int, int]]):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(_identity(kind, heads * size) for _ in range(2)) for heads, size in shapes
        )

    def forward(self, pairs: KeyValues) -> KeyValues:
        """Project keys and values, for each layer [batch, kv_heads, latents, head_dim] each."""
        layers = cast("Iterable[Iterable[nn.Sequential]]", self.layers)
        return [
            (_over_heads(of_keys, keys), _over_heads(of_values, values))
            for (of_keys, of_values), (keys, values) in zip(layers, pairs, strict=True)
        ]


def _identity(kind: str, width: int) -> nn.Sequential:
    """Return a linear map that is initialized to the identity, with a LayerNorm if requested."""
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    norm = [nn.LayerNorm(width)] if kind == "linear_layernorm" else []
    return nn.Sequential(linear, *norm)


def _over_heads(layer: nn.Sequential, states: Tensor) -> Tensor:
    """Apply `layer` to [batch, kv_heads, columns, head_dim] with all heads concatenated."""
    flat = states.transpose(1, 2).flatten(2)
    mapped = layer(flat.to(cast(nn.Linear, layer[0]).weight.dtype))
    return mapped.unflatten(2, states.shape[1::2]).transpose(1, 2)
