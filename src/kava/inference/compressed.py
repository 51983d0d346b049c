"""Compress the KV cache of any causal language model of transformers during generation.

    with compressed(model, "rkv_decoding", budget=128) as log:
        model.generate(**inputs)
    print(log.peak_columns, "columns of", log.uncompressed_columns)

A sequence that holds budget + buffer tokens is compressed to the budget, and again after every
`buffer` tokens (R-KV, Cai et al., arXiv:2505.24133). Each layer and each key/value head keeps the
tokens that its own score selects, in reading order. The last `window` tokens, whose queries the
score is computed from, are always kept. Tokens keep their original positions.

Two points are ours. The tokens of a sequence are counted without padding, so that its output does
not depend on the other sequences in the batch. A prompt longer than budget + buffer is compressed
after it has been read (and `window` tokens have been observed). Layers with a sliding window are
bounded already and are not compressed. Until the first compression, nothing is changed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from kava.backbones import masks
from kava.backbones.attention import (
    IMPLEMENTATION_NAME,
    QueryRecord,
    answer_attention,
    compute_dtype,
    record_queries,
)
from kava.backbones.cache import ShrinkingLayer, enable_shrinking
from kava.errors import KavaError, unknown_name
from kava.reasoning.evictions import Eviction, EvictionInputs, gather
from kava.recipe import registry


@dataclass
class Log:
    """Statistics of a `compressed` block.

    uncompressed_columns: largest number of columns that a cache would hold without compression,
        including padding.
    peak_columns: largest number of columns that it held at any time, even during a long prefill.
    compressions: how many times sequences were compressed.
    """

    uncompressed_columns: int = 0
    peak_columns: int = 0
    compressions: int = 0


@dataclass(frozen=True)
class Plan:
    """The eviction to compress with, and when to compress. All counts are tokens.

    Raises:
        KavaError: if a count is out of range, or the eviction cannot compress to a budget.
    """

    eviction: Eviction
    name: str = "rkv_decoding"
    budget: int = 128
    buffer: int = 128
    window: int = 8

    def __post_init__(self) -> None:
        least = {"window": 1, "buffer": 1, "budget": 2}
        for setting, lowest in least.items():
            value = getattr(self, setting)
            if type(value) is not int or value < lowest:
                raise KavaError(
                    f"compress {self.name}: {setting} is {value!r}; give a whole number, "
                    f"{lowest} or more",
                    code="reasoning.bad-setting",
                    key=setting,
                )
        if self.budget <= self.window:
            raise KavaError(
                f"compress {self.name}: budget {self.budget} must be larger than window "
                f"{self.window}, because the tokens of the window are always kept",
                code="inference.budget-within-window",
                key="budget",
            )
        if self.eviction.merges:
            raise KavaError(
                f"compress {self.name}: this eviction averages tokens, which is possible in "
                "training only; choose another eviction, such as rkv_decoding",
                code="inference.merges-tokens",
                key=self.name,
            )
        try:
            self.eviction.check(self.trigger_length, self.budget)
        except KavaError:
            raise KavaError(
                f"compress {self.name}: this eviction cannot reduce {self.trigger_length} tokens "
                f"to {self.budget}; choose another eviction, such as rkv_decoding",
                code="inference.keeps-everything",
                key=self.name,
            ) from None

    @property
    def trigger_length(self) -> int:
        """Return the number of tokens at which a sequence is compressed."""
        return self.budget + self.buffer


_WHEN = ("budget", "buffer", "window")


def plan(name: str = "rkv_decoding", **settings: Any) -> Plan:
    """Make a plan from the name of an eviction and the settings of both, all of which are checked.

    Args:
        settings: `budget`, `buffer`, `window`, and the fields of the eviction's class. Its `lam`
            may be written `lambda`.

    Raises:
        KavaError: if a name or setting is unknown (suggests the nearest known one), or a value is
            invalid.
    """
    kind = registry.find("evictions", name)
    known = [*_WHEN, *(f.name if f.name != "lam" else "lambda" for f in fields(kind))]
    settings = {("lambda" if key == "lam" else key): value for key, value in settings.items()}
    for key in settings:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known, code="reasoning.unknown-setting")
    when = {key: settings.pop(key) for key in _WHEN if key in settings}
    lam = settings.pop("lambda", 0.1)
    if isinstance(lam, bool) or not isinstance(lam, int | float) or not 0 <= lam <= 1:
        raise KavaError(
            f"compress {name}: lambda is {lam!r}; give a number from 0 to 1",
            code="reasoning.bad-setting",
            key="lambda",
        )
    return Plan(kind(lam=lam, **settings), name, **when)


#: Models that are inside a `compressed` block.
_busy: WeakSet[PreTrainedModel] = WeakSet()


@contextmanager
def compressed(
    model: PreTrainedModel, name: str | Plan = "rkv_decoding", **settings: Any
) -> Iterator[Log]:
    """Compress every KV cache that `model` fills inside the block.

    Args:
        model: any causal language model of transformers, or one wrapped by peft; for a `Reasoner`,
            its `lm`.
        name: an eviction of this package, or a plan.
        settings: see `plan`.

    Raises:
        KavaError: at once, for an invalid setting or a model that cannot be compressed; in a call,
            for a cache or a search strategy that cannot be compressed. Continuing a cache from
            another block is an error too.
    """
    chosen = name if isinstance(name, Plan) else plan(name, **settings)
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(lm, PreTrainedModel):
        raise KavaError(
            f"compressed: a {type(lm).__name__} cannot be compressed while decoding; give a "
            "causal language model of transformers, such as the lm of a Reasoner",
            code="inference.not-a-model",
            key=type(lm).__name__,
        )
    compressor = _Compressor(lm, chosen)
    if lm in _busy:
        raise KavaError(
            "compressed: this model is already in a compressed() block",
            code="inference.nested-blocks",
        )
    attention, own = lm.config._attn_implementation, vars(lm).get("forward")

    @functools.wraps(compressor.original_forward)  # `generate` inspects the signature for arguments
    def forward(*args: Any, **kwargs: Any) -> Any:
        return compressor.forward(*args, **kwargs)

    lm.set_attn_implementation(IMPLEMENTATION_NAME)
    lm.forward = forward
    _busy.add(lm)
    try:
        yield compressor.log
    finally:
        _busy.remove(lm)
        del lm.forward
        if own is not None:
            lm.forward = own
        lm.set_attn_implementation(attention)


def _full_attention_layers(lm: PreTrainedModel) -> list[int]:
    """Return the indices of the layers in which every query attends to all columns before it."""
    config, kind = lm.config.get_text_config(), type(lm).__name__
    provided = any(
        getattr(lm, name, False) for name in ("_supports_sdpa", "_supports_attention_backend")
    )
    if lm.config.is_encoder_decoder or not provided:
        raise KavaError(
            f"compressed: {kind} cannot be compressed while decoding; it must be a decoder that "
            "uses the attention interface of transformers",
            code="inference.other-attention",
            key=kind,
        )
    types = getattr(config, "layer_types", None)
    if types is None:
        bounded = any(getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size"))
        types = ["bounded" if bounded else "full_attention"] * config.num_hidden_layers
    layers = [i for i, layer in enumerate(types) if layer == "full_attention"]
    if not layers:
        raise KavaError(
            f"compressed: no layer of {kind} has full attention, so there is nothing to compress",
            code="inference.all-bounded",
            key=kind,
        )
    return layers


@dataclass
class _Rows:
    """The state of one cache under compression.

    layers: the layers that are compressed, by index.
    mask: true at columns that hold a real token: [batch, columns]. It is the same for all layers
        and heads.
    counts: number of real columns of each sequence (on the host).
    window_mask: mask of the last columns, whose queries are kept: [batch, <= window].
    queries: queries of these columns by layer: [batch, heads, <= window, head_dim].
    """

    layers: dict[int, ShrinkingLayer]
    mask: Tensor
    counts: list[int]
    window_mask: Tensor
    queries: dict[int, Tensor] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)
    softcap: dict[int, float | None] = field(default_factory=dict)
    compressed: bool = False

    @property
    def num_received(self) -> int:
        """Return the number of columns that the cache has received."""
        return next(iter(self.layers.values())).cumulative_length

    def append(self, new: Tensor, record: QueryRecord, window: int) -> None:
        """Record the n columns that a forward pass has added.

        Args:
            new: true at the real columns: [batch, n].
        """
        self.mask = torch.cat((self.mask, new), dim=1)
        self.counts = [a + b for a, b in zip(self.counts, new.sum(1).tolist(), strict=True)]
        self.window_mask = torch.cat((self.window_mask, new[:, -window:]), dim=1)[:, -window:]
        for layer, layer_cache in self.layers.items():
            if layer not in record.queries or layer_cache.keys.shape[2] != self.mask.shape[1]:
                raise KavaError(
                    "compressed: this model's attention does not pass through transformers' "
                    "attention interface and cache; it cannot be compressed while decoding",
                    code="inference.attention-unseen",
                )
            parts = [self.queries[layer]] if layer in self.queries else []
            queries = torch.cat((*parts, record.queries[layer]), dim=2)
            self.queries[layer] = queries[:, :, -window:]
            self.scaling[layer], self.softcap[layer] = record.scaling[layer], record.softcap[layer]


class _Compressor:
    """A model's forward pass with compression of its cache."""

    def __init__(self, lm: PreTrainedModel, plan: Plan):
        self.plan, self.log = plan, Log()
        self.layers = _full_attention_layers(lm)
        self.config, self.dtype = lm.config.get_text_config(), lm.dtype
        self.original_forward = lm.forward
        self.names = list(inspect.signature(self.original_forward).parameters)
        self.caches: WeakKeyDictionary[DynamicCache, _Rows] = WeakKeyDictionary()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward pass and return its output; then compress the cache."""
        call = {**dict(zip(self.names, args, strict=False)), **kwargs}
        inputs = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
        rows = self.rows(call, inputs)
        new = _real_columns(call, inputs, rows.num_received)[:, rows.num_received :]
        if rows.compressed:
            call["attention_mask"] = self.mask(call, inputs, rows, new)
        with record_queries(slice(-self.plan.window, None)) as record:
            output = self.original_forward(**call)
        rows.append(new, record, self.plan.window)
        self.log.uncompressed_columns = max(self.log.uncompressed_columns, rows.num_received)
        self.log.peak_columns = max(self.log.peak_columns, rows.mask.shape[1])
        self.compress(rows)
        return output

    def rows(self, call: dict[str, Any], inputs: Tensor) -> _Rows:
        """Return the state of the call's cache, which is created if the cache is new here."""
        cache = call.get("past_key_values")
        if cache is None:
            if call.get("use_cache") is False:
                raise KavaError(
                    "compressed: use_cache is off, so there is no cache to compress",
                    code="inference.no-cache",
                    key="use_cache",
                )
            cache = call["past_key_values"] = DynamicCache(config=self.config)
        if cache not in self.caches:
            layers = dict(
                zip(self.layers, enable_shrinking(cache, self.config, self.layers), strict=True)
            )
            past = next(iter(layers.values())).cumulative_length
            mask = _real_columns(call, inputs, past)[:, :past]
            self.caches[cache] = _Rows(layers, mask, mask.sum(1).tolist(), window_mask=mask[:, :0])
        return self.caches[cache]

    def mask(self, call: dict[str, Any], inputs: Tensor, rows: _Rows, new: Tensor) -> Any:
        """Return the attention mask over the held columns, in the form that the model takes."""
        full = all(count == rows.mask.shape[1] for count in rows.counts)
        no_mask = full and new.shape[1] == 1 and bool(new.all())
        dtype = compute_dtype(self.dtype, inputs.device)
        cache_mask = None
        if not no_mask:
            cache_mask = masks.to_additive(masks.causal_mask(rows.mask, new), dtype)
        if len(self.layers) == self.config.num_hidden_layers:
            return cache_mask
        embeds = torch.empty(*inputs.shape[:2], 0, dtype=dtype, device=inputs.device)
        by_kind = create_masks_for_generate(
            self.config, embeds, call.get("attention_mask"), call["past_key_values"]
        )
        return {**by_kind, "full_attention": cache_mask}

    @torch.no_grad()
    def compress(self, rows: _Rows) -> None:
        """Compress full sequences to the budget, and drop columns that no sequence needs."""
        budget = self.plan.budget
        # Each sequence by its own length. The authors' code compresses whenever the total length
        # is a multiple of 128.
        full = [b for b, count in enumerate(rows.counts) if count >= self.plan.trigger_length]
        if not full or rows.window_mask.shape[1] < self.plan.window:
            return
        longest = max(rows.counts[b] for b in full)
        for b in full:
            rows.counts[b] = budget
        width = max(rows.counts)
        device = rows.mask.device
        # Padding first, then the real columns in reading order: each row is aligned to the right.
        order = rows.mask.int().argsort(dim=1, stable=True)
        chosen = torch.tensor(full, device=device)
        real = rows.mask.gather(1, order)[chosen, -longest:]
        for layer, layer_cache in rows.layers.items():
            heads = layer_cache.keys.shape[1]
            columns = order[chosen, None, -longest:].expand(-1, heads, -1)
            inputs = self.eviction_inputs(
                rows, layer, chosen, gather(layer_cache.keys[chosen], columns), real
            )
            kept, _ = self.plan.eviction.keep(inputs, budget)
            index = order[:, None, -width:].repeat(1, heads, 1)
            index[chosen, :, -budget:] = columns.gather(2, kept)
            layer_cache.keys = gather(layer_cache.keys, index)
            layer_cache.values = gather(layer_cache.values, index)
        counts = torch.tensor(rows.counts, device=device)
        rows.mask = torch.arange(width, device=device) >= width - counts[:, None]
        rows.compressed = True
        self.log.compressions += 1

    def eviction_inputs(
        self, rows: _Rows, layer: int, chosen: Tensor, keys: Tensor, real: Tensor
    ) -> EvictionInputs:
        """Return the eviction's inputs for a layer and chosen rows; the last `window` observe."""
        window, attention = self.plan.window, None
        if self.plan.eviction.needs_attention:
            # The observation tokens are kept anyway, so only tokens before them compete in the
            # softmax.
            before = real.clone()
            before[:, -window:] = False
            attention = answer_attention(
                rows.queries[layer][chosen],
                keys,
                before,
                scaling=rows.scaling[layer],
                softcap=rows.softcap[layer],
            )
        return EvictionInputs(keys, real, attention, rows.window_mask[chosen], recent=window)


def _real_columns(call: dict[str, Any], inputs: Tensor, past: int) -> Tensor:
    """Return a mask of the real columns of a cache and of n new inputs: [batch, past + n]."""
    shape = inputs.shape[0], past + inputs.shape[1]
    mask = call.get("attention_mask")
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=inputs.device)
    if not isinstance(mask, Tensor) or mask.shape != shape:
        given = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise KavaError(
            f"compressed: attention_mask is {given}, but must be {list(shape)}, with a column for "
            "each token that the cache has seen and for each new token",
            code="inference.bad-mask",
            key="attention_mask",
        )
    return mask.to(inputs.device).bool()
