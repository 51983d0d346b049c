"""kava's latent rules on the layers of a model that vLLM has loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from kava.backbones import cache, masks
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.interface import SPECIAL_TOKENS, ReasonerBase
from kava.reasoning.methods import latent_embeds
from kava.reasoning.projection import Projection
from kava.reasoning.states import Suffix
from kava.recipe import registry
from kava.recipe.schema import Recipe


@dataclass(frozen=True)
class _Output:
    last_hidden_state: Tensor
    past_key_values: Any
    hidden_states: tuple[Tensor, ...] = ()


class _Dense(nn.Module):
    """Attention over a cache of kava's, in place of vLLM's paged attention.

    Args:
        layer: index of the layer.
        attention: the layer's attention module, which knows the size and scale of its heads.
        past: the cache; the new keys and values are appended to it.
        mask: boolean, [batch, 1, columns, past + columns].
    """

    def __init__(self, layer: int, attention: Any, past: Any, mask: Tensor):
        super().__init__()
        self.layer, self.past, self.mask = layer, past, mask
        self.size, self.scale = attention.head_dim, attention.scaling

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention's output, [batch * columns, heads * size]."""
        batch, columns = self.mask.shape[0], self.mask.shape[2]
        query, key, value = (
            part.reshape(batch, columns, -1, self.size).transpose(1, 2)
            for part in (query, key, value)
        )
        keys, values = self.past.update(key, value, self.layer)
        mixed = scaled_dot_product_attention(
            query, keys, values, attn_mask=self.mask, scale=self.scale, enable_gqa=True
        )
        return mixed.transpose(1, 2).reshape(batch * columns, -1)


@contextmanager
def _dense(model: Any, past: Any, mask: Tensor) -> Iterator[None]:
    """Replace the attention of all layers inside the `with` block."""
    modules = [layer.self_attn for layer in model.layers]
    kept = [module.attn for module in modules]
    try:
        for index, module in enumerate(modules):
            module.attn = _Dense(index, module, past, mask)
        yield
    finally:
        for module, attention in zip(modules, kept, strict=True):
            module.attn = attention


class EngineReasoner(ReasonerBase):
    """The parts of a reasoner that the latent rules use, with vLLM's layers as the backbone.

    Its weights have the names of an exported folder, without `kava.`.

    Args:
        model: vLLM's decoder (`LlamaModel`, `Qwen2Model`, `Qwen3Model`); it is not registered as a
            module of this one.
        recipe: the recipe of the exported folder.
        size: hidden size.
        dtype: dtype of the backbone's weights.
    """

    def __init__(self, model: Any, recipe: Recipe, size: int, dtype: torch.dtype):
        super().__init__()
        self.recipe, self.method = recipe, registry.find("methods", recipe.method)(recipe)
        self._decoder, self._dtype = [model], dtype
        # As in peft, what kava adds stays in fp32 (`Reasoner.from_pretrained`).
        self.special_tokens = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(size, dtype=torch.float32)) for name in SPECIAL_TOKENS}
        )
        self.projection = Projection(recipe.projection, size, recipe.projection_dim, 1.0).float()
        self.method_modules = self.method.modules(self).float()

    def cache_shapes(self) -> list[tuple[int, int]]:
        """Return (kv_heads, head_dim) of each layer's cache, of all devices together."""
        modules = [layer.self_attn for layer in self._decoder[0].layers]
        return [(module.total_num_kv_heads, module.head_dim) for module in modules]

    def special(self, name: str) -> Tensor:
        """Return the embedding [hidden] of `bot`, `latent` or `eot`, in the backbone's dtype."""
        return self.special_tokens[name].to(self._dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Map token ids [batch, columns] to input embeddings [batch, columns, hidden]."""
        return self._decoder[0].embed_input_ids(ids.flatten()).unflatten(0, ids.shape)

    def project(self, hidden: Tensor) -> Tensor:
        """Map hidden states [batch, columns, hidden] to latent inputs."""
        return self.projection(hidden).to(self._dtype)

    def extend(
        self,
        context: MaskedCache,
        embeds: Tensor,
        mask: Tensor | None = None,
        hidden_states: bool = False,
        suffix: Suffix | None = None,
    ) -> tuple[Any, MaskedCache]:
        """Run vLLM's layers on new columns that follow a context; see `ReasonerBase.extend`."""
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        if suffix is not None:
            embeds = torch.cat((embeds, suffix.embeds), dim=1)
            mask = torch.cat((mask, suffix.mask), dim=1)
        past, model = cache.fork(context.past_key_values), self._decoder[0]
        places = masks.positions(context.attention_mask, mask).flatten()
        hidden, residual = embeds.flatten(0, 1).clone(), None  # vLLM's kernels work in place
        with _dense(model, past, masks.causal_mask(context.attention_mask, mask)):
            for layer in model.layers:
                hidden, residual = layer(places, hidden, residual)
        hidden, _ = model.norm(hidden, residual)
        output = _Output(hidden.unflatten(0, embeds.shape[:2]), past)
        return output, MaskedCache(past, torch.cat((context.attention_mask, mask), dim=1))

    @torch.no_grad()
    def think(self, questions: list[list[int]], num_iterations: int) -> Tensor:
        """Return the embeddings of <bot>, the latents of the last pass and <eot>.

        Args:
            questions: token ids of each question.
            num_iterations: T.

        Returns:
            [batch, M + 2, hidden].
        """
        ids, mask = (part.to(self.device) for part in masks.pad(questions, "left"))
        return latent_embeds(self, self.method.think_in_latents(self, ids, mask, num_iterations))
