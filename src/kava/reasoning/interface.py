"""What methods, latents, losses and checkpoints use of a reasoner (`kava.Reasoner`)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kava.backbones import cache, masks, structure
from kava.backbones.masked_cache import MaskedCache
from kava.backbones.structure import Output
from kava.reasoning.batching import Encoder
from kava.reasoning.states import Suffix
from kava.recipe.schema import Recipe

#: Special tokens that every reasoner adds to its tokenizer, by the names used in the code.
SPECIAL_TOKENS = {"bot": "<bot>", "latent": "<latent>", "eot": "<eot>"}


class ReasonerBase(nn.Module):
    """A backbone with special tokens and a latent projection, as used by the parts of a method.

    `kava.reasoning.reasoner.Reasoner` fills it and adds training and inference. None of the parts
    imports that one.
    """

    recipe: Recipe
    tokenizer: Any
    encoder: Encoder
    identity: dict[str, Any]
    #: Measured results (`result.json`) for the model card; None before there are any.
    record: dict[str, Any] | None
    #: Whether the weights are a backbone with a merged LoRA adapter, and not trained since.
    merged: bool
    #: [vocabulary], true at ids that have no text and are never generated; None if there are none.
    unreadable_ids: Tensor | None
    windows: masks.Windows
    special_tokens: nn.ParameterDict
    #: The training method, a `kava.reasoning.methods.Method`.
    method: Any
    #: The modules that only the method has.
    method_modules: nn.ModuleDict
    #: The modules that only the method's loss needs; there are none outside of a training.
    training_modules: nn.ModuleDict
    #: Projection P from the hidden state of a latent to the input of the next latent.
    projection: nn.Module
    #: The language model, or the peft model that wraps it.
    backbone: Any

    @property
    def lm(self) -> PreTrainedModel:
        """The causal language model of transformers, including adapter layers."""
        peft = hasattr(self.backbone, "get_base_model")
        return self.backbone.get_base_model() if peft else self.backbone

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.special_tokens["bot"].device

    @property
    def has_sliding_window(self) -> bool:
        """Whether any layer has a sliding window."""
        by_kind = self.windows.values() if isinstance(self.windows, dict) else [self.windows]
        return any(window is not None for window in by_kind)

    def special(self, name: str) -> Tensor:
        """Return the embedding [hidden] of `bot`, `latent` or `eot`, in the backbone's dtype."""
        return self.special_tokens[name].to(self.lm.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Map token ids [batch, columns] to input embeddings [batch, columns, hidden]."""
        return self.lm.get_input_embeddings()(ids)

    def project(self, hidden: Tensor) -> Tensor:
        """Map hidden states [batch, columns, hidden] to latent inputs with the projection P.

        The result has the shape of the input and the backbone's dtype.
        """
        return self.projection(hidden).to(self.lm.dtype)

    @torch.no_grad()
    def cache_shapes(self) -> list[tuple[int, int]]:
        """Return (kv_heads, head_dim) of each layer's cache."""
        one = torch.zeros((1, 1), dtype=torch.long, device=self.lm.device)
        start = MaskedCache.empty(1, one.device)
        _, context = self.extend(start, self.embed(one), torch.ones_like(one, dtype=torch.bool))
        return [(k.shape[1], k.shape[3]) for k, _ in cache.key_values(context.past_key_values)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., hidden] to logits [..., vocabulary]."""
        return structure.logits(self.lm, hidden)

    def extend(
        self,
        context: MaskedCache,
        embeds: Tensor,
        mask: Tensor | None = None,
        hidden_states: bool = False,
        suffix: Suffix | None = None,
    ) -> tuple[Output, MaskedCache]:
        """Run the backbone on new columns that follow a KV cache, which is not changed.

        Args:
            context: the KV cache to continue from.
            embeds: [batch, columns, hidden], input embeddings.
            mask: [batch, columns], true at real columns; by default, all columns are real.
            hidden_states: whether the output includes the hidden states of all layers.
            suffix: what follows these columns; it says itself whether hidden states are needed.

        Returns:
            The output over the new columns, and the KV cache with these columns appended.
        """
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        if suffix is not None:
            embeds = torch.cat((embeds, suffix.embeds), dim=1)
            mask, hidden_states = torch.cat((mask, suffix.mask), dim=1), suffix.hidden_states
        return structure.extend(self.lm, self.windows, context, embeds, mask, hidden_states)

    def states_before_answer(self, output: Output, start: int, batch: dict[str, Any]) -> Tensor:
        """Return the hidden states of all layers at the token where L_CODI compares them.

        With `codi.position: answer`, this is the last token before the answer's own first token;
        with `prompt`, the last token of the answer prompt. They differ if the blank before the
        answer is a token of its own.

        Args:
            output: output of a forward pass with the hidden states of all layers.
            start: the column at which the answer segment begins.
            batch: see `kava.reasoning.batching.collate`.

        Returns:
            [layers, batch, hidden]; with `codi.include_embeddings`, the embeddings come first.
        """
        states = output.hidden_states[0 if self.recipe.codi.include_embeddings else 1 :]
        column = batch["answer_start"] + (start - 1)
        if self.recipe.codi.position == "prompt":
            column = torch.full_like(column, start + len(self.encoder.prompt) - 1)
        rows = torch.arange(len(column), device=column.device)
        return torch.stack([state[rows, column] for state in states])
