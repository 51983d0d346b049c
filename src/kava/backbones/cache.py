"""Operations on KV caches; the only file that uses the cache classes of transformers.

A cache is a plain `DynamicCache` with keys and values [batch, kv_heads, columns, head_dim] for each
layer; keys are stored after the rotary embedding. `fork` and `crop` share tensors and copy nothing.
Since `update` concatenates into new tensors, a fork never changes the original cache, and gradients
flow through both.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kava.errors import KavaError

KeyValues = list[tuple[Tensor, Tensor]]


def is_dynamic_cache(value: Any) -> bool:
    """Whether a value is a `DynamicCache`."""
    return isinstance(value, DynamicCache)


def key_values(cache: DynamicCache, start: int = 0, stop: int | None = None) -> KeyValues:
    """Return columns `start:stop` of every layer's keys and values.

    Returns:
        For each layer, keys and values, [batch, kv_heads, stop - start, head_dim] each.
    """
    return [
        (layer.keys[:, :, start:stop], layer.values[:, :, start:stop]) for layer in _layers(cache)
    ]


def _layers(cache: DynamicCache) -> list[Any]:
    """Return all layers, untyped, since the types of transformers allow layers without keys."""
    return cache.layers


def length(cache: DynamicCache) -> int:
    """Return the number of columns of a cache."""
    return cache.get_seq_length()


def layer(cache: DynamicCache, index: int) -> tuple[Tensor, Tensor] | None:
    """Return the keys and values of one layer, or None if the layer is still empty."""
    layers = _layers(cache)
    if index >= len(layers) or not layers[index].is_initialized:
        return None
    return layers[index].keys, layers[index].values


def set_layer(cache: DynamicCache, index: int, keys: Tensor, values: Tensor) -> None:
    """Replace the keys and values of one layer, [batch, kv_heads, columns, head_dim] each."""
    layers = _layers(cache)
    while len(layers) <= index:
        layers.append(cast(Any, cache).layer_class_to_replicate())
    stored_layer = layers[index]
    stored_layer.lazy_initialization(keys, values)
    stored_layer.keys, stored_layer.values = keys, values


def crop(cache: DynamicCache, columns: int) -> DynamicCache:
    """Return a new cache that shares the first `columns` columns."""
    if columns == 0 or length(cache) == 0:
        return DynamicCache()
    return from_key_values(key_values(cache, 0, columns))


def fork(cache: DynamicCache) -> DynamicCache:
    """Return a new cache that shares all columns."""
    return crop(cache, length(cache))


def select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Return a new cache with the given rows of the batch."""
    return from_key_values([(keys[rows], values[rows]) for keys, values in key_values(cache)])


def gather(cache: DynamicCache, columns: Tensor) -> DynamicCache:
    """Return a new cache with the given columns of each row, in the given order.

    Args:
        columns: [batch, columns], indices of the columns.
    """
    index = columns[:, None, :, None]
    return from_key_values(
        [
            (keys.take_along_dim(index, dim=2), values.take_along_dim(index, dim=2))
            for keys, values in key_values(cache)
        ]
    )


def size_in_bytes(cache: DynamicCache) -> int:
    """Return the size of a cache in bytes."""
    return sum(t.numel() * t.element_size() for pair in key_values(cache) for t in pair)


class OneLayer(DynamicCache):
    """The cache of a single layer, regardless of the layer's index in the backbone.

    Args:
        keys, values: [batch, kv_heads, columns, head_dim] each; None before the first columns.
    """

    keys: Any
    values: Any

    def __init__(self, keys: Tensor | None, values: Tensor | None):
        super().__init__()
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns and return all keys and values.

        `layer_idx` is not read, because torch.compile would then compile each layer separately.
        """
        if self.keys is not None:
            key_states = torch.cat((self.keys, key_states), dim=2)
            value_states = torch.cat((self.values, value_states), dim=2)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns."""
        return 0 if self.keys is None else self.keys.shape[2]


class ShrinkingLayer(DynamicLayer):
    """A cache layer from which columns can be removed, while its length still counts all tokens.

    transformers derives positions and the width of masks from the length of a cache. The number of
    columns in memory is `keys.shape[2]`.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.cumulative_length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any):
        """Append columns and return all keys and values."""
        self.cumulative_length += key_states.shape[2]
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """Return the total number of tokens so far, including removed ones."""
        return self.cumulative_length

    def _raise_unsupported(self, *_: Any, **_named: Any) -> Any:
        raise KavaError(
            "a cache that is compressed while decoding cannot be reordered or cropped; beam "
            "search and assisted decoding are not supported",
            code="backbones.compressed-cache",
        )

    reorder_cache = crop = batch_repeat_interleave = batch_select_indices = _raise_unsupported


def enable_shrinking(cache: DynamicCache, config: Any, layers: list[int]) -> list[ShrinkingLayer]:
    """Replace the given layers of a cache by layers from which columns can be removed.

    The cache may already contain columns.

    Args:
        cache: the cache; it is changed in place.
        config: config of the language model, which determines the layers of an empty cache.
        layers: indices of the layers to replace.

    Returns:
        The new layers.

    Raises:
        KavaError: the type of the cache or of a layer is not supported.
    """
    if not isinstance(cache, DynamicCache) or cache.offloading:
        raise KavaError(
            f"a {type(cache).__name__} cannot be compressed while decoding; use the default cache "
            "of transformers (do not set cache_implementation)",
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
                f"a cache with layers of type {type(old).__name__} cannot be compressed",
                code="backbones.cache-layers",
                key=type(old).__name__,
            )
        old_layer, new = layer(cache, i), ShrinkingLayer()
        cache.layers[i] = new
        if old_layer is not None:
            new.update(*old_layer)
        shrinking.append(new)
    return shrinking


def from_key_values(pairs: KeyValues) -> DynamicCache:
    """Return a new cache of the given keys and values, which are not copied."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(pairs):
        set_layer(cache, index, keys, values)
    return cache


def cat_columns(left: KeyValues, right: KeyValues) -> KeyValues:
    """Concatenate the columns of two lists of keys and values, `left` first."""
    return [
        (torch.cat((lk, rk), dim=2), torch.cat((lv, rv), dim=2))
        for (lk, lv), (rk, rv) in zip(left, right, strict=True)
    ]
