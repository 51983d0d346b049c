"""The only file that touches transformers' cache classes.

A cache here is a plain `DynamicCache`: one (keys, values) pair of [B, H, S, D] per layer, keys
after the rotary embedding. `fork` and `crop` share tensors and copy nothing: `update` concatenates
into new tensors, so a fork never changes its origin and gradients flow through both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

KeyValues = list[tuple[Tensor, Tensor]]


def empty() -> DynamicCache:
    """A cache with no columns. Sliding-window layers keep all columns too; masks do the rest."""
    return DynamicCache()


def key_values(cache: DynamicCache, start: int = 0, stop: int | None = None) -> KeyValues:
    """Columns `start:stop` of every layer, as [B, H, stop - start, D] pairs."""
    return [
        (layer.keys[:, :, start:stop], layer.values[:, :, start:stop]) for layer in cache.layers
    ]


def length(cache: DynamicCache) -> int:
    """Number of columns S."""
    return cache.get_seq_length()


def from_key_values(pairs: KeyValues) -> DynamicCache:
    """A cache holding the given tensors."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


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


def _share(pairs: KeyValues) -> DynamicCache:
    cache = DynamicCache()
    for keys, values in pairs:
        layer = cache.layer_class_to_replicate()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def cat_columns(left: KeyValues, right: KeyValues) -> KeyValues:
    """Columns of `left` followed by those of `right`."""
    return [
        (torch.cat((lk, rk), dim=2), torch.cat((lv, rv), dim=2))
        for (lk, lv), (rk, rv) in zip(left, right, strict=True)
    ]
