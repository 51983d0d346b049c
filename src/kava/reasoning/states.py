"""Input and output types of the rules that generate latents (`kava.reasoning.latents`)."""

from dataclasses import dataclass

from torch import Tensor

from kava.backbones.cache import KeyValues
from kava.backbones.masked_cache import MaskedCache
from kava.backbones.structure import Output
from kava.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Suffix:
    """Input that follows the latents in the last pass; it begins with <eot>.

    Args:
        embeds: [batch, columns, hidden], input embeddings.
        mask: [batch, columns], true at real columns.
        hidden_states: whether the last pass returns the hidden states of all layers.
    """

    embeds: Float[Tensor, "batch columns hidden"]
    mask: Bool[Tensor, "batch columns"]
    hidden_states: bool = False


@dataclass(frozen=True)
class AutoIterations:
    """A number of iterations that each example finds itself, see `kava.reasoning.latents._settle`.

    Args:
        max_iterations: an upper bound.
        tolerance: largest change of a latent's input, relative to its norm, that counts as none.
    """

    max_iterations: int
    tolerance: float


@dataclass(frozen=True)
class LatentState:
    """State after all latents and the suffix have been processed.

    Args:
        cache: KV cache over [Q, <bot>, latents, suffix].
        output: output of the last pass; its columns from `suffix_start` on are the suffix.
        suffix_start: the first column of the suffix in `output`.
        key_values: keys and values of the latents for the last pass, or for all T + 1 passes; for
            each layer [batch, kv_heads, latents, head_dim] each.
        inputs: for each pass, the latents' input embeddings [batch, latents, hidden].
        states: the latents' hidden states of the last layer, [batch, latents, hidden], for the last
            pass or for all T + 1 passes.
        bot: hidden state of <bot> in the last layer, [batch, 1, hidden]; the same in every pass,
            since <bot> stands before the latents.
        iterations: [batch], T of each example, if each has found its own.
    """

    cache: MaskedCache
    output: Output
    suffix_start: int
    key_values: list[KeyValues]
    inputs: list[Float[Tensor, "batch latents hidden"]]
    states: list[Float[Tensor, "batch latents hidden"]]
    bot: Float[Tensor, "batch 1 hidden"]
    iterations: Int[Tensor, "batch"] | None = None

    @property
    def latents(self) -> Float[Tensor, "batch latents hidden"]:
        """Hidden states of the latents in the last layer and pass, [batch, latents, hidden]."""
        return self.states[-1]

    @property
    def suffix(self) -> Float[Tensor, "batch columns hidden"]:
        """Hidden states of the suffix in the last layer, [batch, columns, hidden]."""
        return self.output.last_hidden_state[:, self.suffix_start :]
