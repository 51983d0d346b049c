"""Interface of the reasoner (`kava.Reasoner`) to methods, latents, losses and checkpoints."""

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

#: Special tokens that every reasoner adds to its tokenizer, by the names used in the code.
SPECIAL_TOKENS = {"bot": "<bot>", "latent": "<latent>", "eot": "<eot>"}


class ReasonerProtocol(Protocol):
    """A backbone with special tokens and a latent projection, as used by the parts of a method.

    It is implemented by `kava.reasoning.reasoner.Reasoner`, which none of these parts imports.
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
        """Projection P from the hidden state of a latent to the input of the next latent."""
        ...

    @property
    def lm(self) -> Any:
        """The causal language model of transformers, including adapter layers."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    @property
    def has_sliding_window(self) -> bool:
        """Whether any layer has a sliding window."""
        ...

    @property
    def prompt_text(self) -> str:
        """Text of the answer prompt."""
        ...

    def special(self, name: str) -> Tensor:
        """Return the embedding [hidden] of `bot`, `latent` or `eot`, in the backbone's dtype."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Map token ids [batch, columns] to input embeddings [batch, columns, hidden]."""
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Map hidden states to latent inputs, both [batch, columns, hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., hidden] to logits [..., vocabulary]."""
        ...

    def cache_shapes(self) -> list[tuple[int, int]]:
        """Return the number of key/value heads and the head size of each layer's cache."""
        ...

    def extend(
        self,
        thought: Thought,
        embeds: Tensor,
        mask: Tensor | None = None,
        hidden_states: bool = False,
        suffix: Suffix | None = None,
    ) -> tuple[Output, Thought]:
        """Run the backbone on new columns that follow a thought, which is not changed.

        Args:
            thought: the KV cache to continue from.
            embeds: [batch, columns, hidden], input embeddings.
            mask: [batch, columns], true at real columns; by default, all columns are real.
            hidden_states: whether the output includes the hidden states of all layers.
            suffix: what follows these columns; it says itself whether hidden states are needed.

        Returns:
            The output over the new columns, and the thought with these columns appended.
        """
        ...

    def colon_states(self, output: Output, start: int) -> Tensor:
        """Return the hidden states of all layers at the last token of the answer prompt.

        Args:
            output: output of a forward pass with the hidden states of all layers.
            start: the column at which the answer prompt begins.

        Returns:
            [layers, batch, hidden].
        """
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the weights and their names."""
        ...
