"""Trained maps: of a hidden state to the next latent's input, and of keys and values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from kava.backbones.cache import KeyValues


class Projection(nn.Module):
    """Linear(d, p) - GELU - Linear(p, d) - LayerNorm (spec, Latents; after PCCoT and CODI).

    Args:
        kind: `none` (identity), `mlp` (without LayerNorm) or `mlp_layernorm`.
        size: hidden size d.
        inner: p, d if not given.
        scale: initial LayerNorm gain. The backbone's root-mean-square embedding value puts
            latents on the scale of the embeddings it was trained on (ours; the paper is silent).
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
        """[..., d] to [..., d]."""
        weight = next(self.parameters(), None)
        return self.layers(hidden if weight is None else hidden.to(weight.dtype))


class KvProjection(nn.Module):
    """Maps student keys and values before they are compared (`kv.projection`; ours).

    One linear map for the keys and one for the values of each layer, over all heads together,
    identity at first. It takes part in the loss alone; answers never see it.

    Args:
        kind: `linear` or `linear_layernorm`.
        shapes: (heads, head size) of each layer's cache.
    """

    def __init__(self, kind: str, shapes: list[tuple[int, int]]):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(_identity(kind, heads * size) for _ in range(2)) for heads, size in shapes
        )

    def forward(self, pairs: KeyValues) -> KeyValues:
        """One pair of [B, H, M, D] per layer, and the same back."""
        layers = cast("Iterable[Iterable[nn.Sequential]]", self.layers)
        return [
            (_over_heads(of_keys, keys), _over_heads(of_values, values))
            for (of_keys, of_values), (keys, values) in zip(layers, pairs, strict=True)
        ]


def _identity(kind: str, width: int) -> nn.Sequential:
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    norm = [nn.LayerNorm(width)] if kind == "linear_layernorm" else []
    return nn.Sequential(linear, *norm)


def _over_heads(layer: nn.Sequential, states: Tensor) -> Tensor:
    flat = states.transpose(1, 2).flatten(2)
    mapped = layer(flat.to(cast(nn.Linear, layer[0]).weight.dtype))
    return mapped.unflatten(2, states.shape[1::2]).transpose(1, 2)
