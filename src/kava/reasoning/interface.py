"""What methods, latents, losses and checkpoints use of a reasoner (`kava.Reasoner`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kava.backbones.structure import Output
from kava.backbones.thought import Thought
from kava.recipe.schema import Recipe

if TYPE_CHECKING:
    from kava.reasoning.batching import Encoder
    from kava.reasoning.states import Suffix

#: Special tokens that every reasoner adds to its tokenizer, by what they are called here.
SPECIAL_TOKENS = {"bot": "<bot>", "latent": "<latent>", "eot": "<eot>"}


class ReasonerProtocol(Protocol):
    """A backbone with special tokens and a latent projection, as the method's parts see it.

    B is the batch, n the number of new columns, d the hidden size, L the number of layers.
    `kava.reasoning.reasoner.Reasoner` has all of it; it is imported by none of these parts.
    """

    recipe: Recipe
    tokenizer: Any
    encoder: Encoder
    identity: dict[str, Any]
    record: dict[str, Any] | None
    merged: bool
    unreadable_ids: list[int]
    special_tokens: nn.ParameterDict
    method_modules: nn.ModuleDict
    backbone: Any

    @property
    def method(self) -> Any:
        """The training method, a `kava.reasoning.methods.Method`."""
        ...

    @property
    def projection(self) -> nn.Module:
        """P, of a latent's state to the next latent's input."""
        ...

    @property
    def lm(self) -> Any:
        """The causal language model of transformers, with adapter layers inside."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def has_sliding_window(self) -> bool:
        """Whether some layer attends to the last positions only."""
        ...

    @property
    def prompt_text(self) -> str:
        """The answer prompt."""
        ...

    def special(self, name: str) -> Tensor:
        """Embedding [d] of `bot`, `latent` or `eot`, in the backbone's dtype."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, n] to input embeddings [B, n, d]."""
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, n, d] to latent inputs [B, n, d]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., d] to logits [..., vocabulary]."""
        ...

    def cache_shapes(self) -> list[tuple[int, int]]:
        """Key/value heads and head size of each layer's cache."""
        ...

    def extend(
        self, thought: Thought, embeds: Tensor, mask: Tensor, hidden_states: bool = False
    ) -> tuple[Output, Thought]:
        """Run new columns [B, n, d] with their mask [B, n] after a thought."""
        ...

    def extend_latents(
        self, thought: Thought, embeds: Tensor, suffix: Suffix | None
    ) -> tuple[Output, Thought]:
        """Run columns that are real in every row, and the suffix after them if there is one."""
        ...

    def extend_with(
        self, thought: Thought, embeds: Tensor, mask: Tensor, suffix: Suffix | None
    ) -> tuple[Output, Thought]:
        """Run columns [B, n, d] with their mask [B, n], and the suffix if there is one."""
        ...

    def colon_states(self, output: Output, start: int) -> Tensor:
        """Hidden states of all layers at the last token of the answer prompt, [L, B, d]."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Weights by name."""
        ...
