"""The only file that touches transformers' cache classes.

A cache here is a plain `DynamicCache`: one (keys, values) pair of [B, H, S, D] per layer, keys
after the rotary embedding. `fork` and `crop` share tensors and copy nothing: `update` concatenates
into new tensors, so a fork never changes its origin and gradients flow through both.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kava.errors import KavaError

KeyValues = list[tuple[Tensor, Tensor]]


def empty() -> DynamicCache:
    """A cache with no columns. Sliding-window layers keep all columns too; masks do the rest."""
    return DynamicCache()


def is_one(value: Any) -> bool:
    """Whether a value is a cache of the kind used here."""
    return isinstance(value, DynamicCache)


def key_values(cache: DynamicCache, start: int = 0, stop: int | None = None) -> KeyValues:
    """Columns `start:stop` of every layer, as [B, H, stop - start, D] pairs."""
    return [
        (layer.keys[:, :, start:stop], layer.values[:, :, start:stop]) for layer in _layers(cache)
    ]


def _layers(cache: DynamicCache) -> list[Any]:
    """All of its layers; transformers' types allow some that hold no keys."""
    return cache.layers


def length(cache: DynamicCache) -> int:
    """Number of columns S."""
    return cache.get_seq_length()


def from_key_values(pairs: KeyValues) -> DynamicCache:
    """A cache holding the given tensors."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


def layer(cache: DynamicCache, index: int) -> tuple[Tensor, Tensor] | None:
    """Keys and values of one layer; None where it holds nothing yet."""
    layers = _layers(cache)
    if index >= len(layers) or not layers[index].is_initialized:
        return None
    return layers[index].keys, layers[index].values


def put(cache: DynamicCache, index: int, keys: Tensor, values: Tensor) -> None:
    """Let a layer hold these tensors [B, H, S, D] in place of the present ones."""
    layers = _layers(cache)
    while len(layers) <= index:
        layers.append(cast(Any, cache).layer_class_to_replicate())
    held = layers[index]
    held.lazy_initialization(keys, values)
    held.keys, held.values = keys, values


def crop(cache: DynamicCache, columns: int) -> DynamicCache:
    """A new cache that shares the first `columns` columns."""
    if columns == 0 or length(cache) == 0:
        return DynamicCache()
    return _share(key_values(cache, 0, columns))


def fork(cache: DynamicCache) -> DynamicCache:
    """A new cache that shares all columns."""
    return crop(cache, length(cache))


def select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A new cache with the given batch rows."""
    return _share([(keys[rows], values[rows]) for keys, values in key_values(cache)])


def gather(cache: DynamicCache, columns: Tensor) -> DynamicCache:
    """A new cache that holds the given columns [B, n] of each row, in that order."""
    index = columns[:, None, :, None]
    return _share(
        [(_columns(keys, index), _columns(values, index)) for keys, values in key_values(cache)]
    )


def _columns(states: Tensor, index: Tensor) -> Tensor:
    batch, heads, _, size = states.shape
    return states.gather(2, index.expand(batch, heads, -1, size))


def detach(pairs: KeyValues) -> KeyValues:
    """The same tensors without gradient."""
    return [(keys.detach(), values.detach()) for keys, values in pairs]


def columns_in_bytes(cache: DynamicCache) -> int:
    """Memory of the cache in bytes."""
    return sum(t.numel() * t.element_size() for pair in key_values(cache) for t in pair)


class OneLayer(DynamicCache):
    """The cache as one layer has it, wherever in the backbone that layer is.

    keys, values: [B, H, S, D] each; None before the first columns.
    """

    keys: Any
    values: Any

    def __init__(self, keys: Tensor | None, values: Tensor | None):
        super().__init__()
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and values held. Looking at `layer_idx` would make
        torch.compile set layers apart."""
        if self.keys is not None:
            key_states = torch.cat((self.keys, key_states), dim=2)
            value_states = torch.cat((self.values, value_states), dim=2)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns held."""
        return 0 if self.keys is None else self.keys.shape[2]


class ShrinkingLayer(DynamicLayer):
    """One layer from which columns may be taken; its length goes on counting every token seen.

    transformers takes positions and the width of masks from a cache's length. The columns held are
    `keys.shape[2]`.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any):
        """Append columns; returns all keys and values held."""
        self.seen += key_states.shape[2]
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Hold these columns [B, H, S, D] in place of the present ones."""
        self.keys, self.values = keys, values

    def _refuse(self, *_: Any, **_named: Any) -> Any:
        raise KavaError(
            "a cache that is compressed while decoding cannot be reordered or cut; "
            "beam search and assisted decoding are not possible with it",
            code="backbones.compressed-cache",
        )

    reorder_cache = crop = batch_repeat_interleave = batch_select_indices = _refuse


def enable_shrinking(cache: DynamicCache, config: Any, layers: list[int]) -> list[ShrinkingLayer]:
    """Turn the given layers of a cache, filled or not, into ones that can shrink; returns them.

    Args:
        cache: changed in place.
        config: the language model's, which says what an empty cache will hold.

    Raises:
        KavaError: the cache is of a kind that cannot.
    """
    if not isinstance(cache, DynamicCache) or cache.offloading:
        raise KavaError(
            f"a {type(cache).__name__} cannot be compressed while decoding; use the default cache "
            "of transformers (no cache_implementation)",
            code="backbones.cache-kind",
            key=type(cache).__name__,
        )
    if not cache.layers:
        cache.layers = DynamicCache(config=config).layers
    shrinking = []
    for i in layers:
        old = cache.layers[i]
        if type(old) is not DynamicLayer:
            raise KavaError(
                f"a cache with layers of {type(old).__name__} cannot be compressed here",
                code="backbones.cache-layers",
                key=type(old).__name__,
            )
        held, new = layer(cache, i), ShrinkingLayer()
        cache.layers[i] = new
        if held is not None:
            new.update(*held)
        shrinking.append(new)
    return shrinking


def _share(pairs: KeyValues) -> DynamicCache:
    cache = DynamicCache()
    for index, (keys, values) in enumerate(pairs):
        put(cache, index, keys, values)
    return cache


def cat_columns(left: KeyValues, right: KeyValues) -> KeyValues:
    """Columns of `left` followed by those of `right`."""
    return [
        (torch.cat((lk, rk), dim=2), torch.cat((lv, rv), dim=2))
        for (lk, lv), (rk, rv) in zip(left, right, strict=True)
    ]
