"""P(...): from a hidden state to the next latent's input embedding."""

from __future__ import annotations

from torch import Tensor, nn


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
