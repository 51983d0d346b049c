"""What a latent rule takes and returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kava.backbones.cache import KeyValues
from kava.backbones.structure import Output
from kava.backbones.thought import Thought
from kava.shapes import Bool, Float


@dataclass(frozen=True)
class Suffix:
    """Input embeddings [B, n, d] and mask [B, n] of what follows the latents, <eot> first.

    hidden_states: whether all layers' outputs are wanted for the last pass.
    """

    embeds: Float[Tensor, "batch columns hidden"]
    mask: Bool[Tensor, "batch columns"]
    hidden_states: bool = False


@dataclass(frozen=True)
class LatentState:
    """The end of thinking.

    thought: cache over [Q, <bot>, latents, suffix].
    output: of the last pass; its columns from `suffix_start` on are the suffix.
    key_values: of the latents, [B, H, M, D] per layer; the last pass, or all T + 1 passes.
    inputs: the latents' input embeddings [B, M, d] of each pass.
    states: last layer's states of the latents, [B, M, d]; of the passes of `key_values`.
    """

    thought: Thought
    output: Output
    suffix_start: int
    key_values: list[KeyValues]
    inputs: list[Float[Tensor, "batch latents hidden"]]
    states: list[Float[Tensor, "batch latents hidden"]]

    @property
    def latents(self) -> Float[Tensor, "batch latents hidden"]:
        """Last layer's states of the latents in the last pass, [B, M, d]."""
        return self.states[-1]

    @property
    def suffix(self) -> Float[Tensor, "batch columns hidden"]:
        """Last layer's states of the suffix, [B, n, d]."""
        return self.output.last_hidden_state[:, self.suffix_start :]
