"""Compressing the cache of any causal language model of transformers while it generates.

    with compressed(model, "rkv_decoding", budget=128) as log:
        model.generate(**inputs)
    print(log.held, "columns of", log.seen)

A row of the batch that holds budget + buffer tokens is brought down to the budget, and again after
every `buffer` tokens (R-KV, Cai et al., arXiv:2505.24133). Each layer and each key/value head keeps
what its own score says, in reading order; the last `window` tokens, whose queries the score is
computed from, always stay. Tokens keep the positions at which they were read.

What is ours: rows are counted without their pads, so that what a row writes does not depend on its
batch mates; a prompt beyond budget + buffer is compressed once it has been read (and `window`
tokens have been observed). Layers with a sliding window are bounded already and are left alone.
Until something is compressed, nothing is changed.
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
    record_queries,
)
from kava.backbones.cache import ShrinkingLayer, enable_shrinking
from kava.errors import KavaError, unknown
from kava.reasoning.evictions import Eviction, EvictionInputs, gather
from kava.recipe import registry


@dataclass
class Log:
    """What has happened inside a `compressed` block.

    seen: most columns that a cache has been given, pads included.
    held: most columns that it held at any time, while a long prompt was read too.
    compressions: how many times rows were compressed.
    """

    seen: int = 0
    held: int = 0
    compressions: int = 0


@dataclass(frozen=True)
class Plan:
    """What compresses, and when. All counts are tokens.

    Raises:
        KavaError: a count out of range, or an eviction that cannot bring tokens to a budget.
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
                f"compress {self.name}: budget {self.budget} is not above window {self.window}, "
                "whose tokens always stay",
                code="inference.budget-within-window",
                key="budget",
            )
        try:
            self.eviction.check(self.full, self.budget)
        except KavaError:
            raise KavaError(
                f"compress {self.name}: this eviction cannot bring {self.full} tokens to "
                f"{self.budget}; choose another, such as rkv_decoding",
                code="inference.keeps-everything",
                key=self.name,
            ) from None

    @property
    def full(self) -> int:
        """Tokens at which a row is compressed."""
        return self.budget + self.buffer


_WHEN = ("budget", "buffer", "window")


def plan(name: str = "rkv_decoding", **settings: Any) -> Plan:
    """A plan from an eviction's name and the settings of both, those of the eviction checked too.

    Args:
        settings: `budget`, `buffer`, `window`, and the fields of the eviction's class. Its `lam`
            may be written `lambda`.

    Raises:
        KavaError: an unknown name or setting (with the nearest known one), or a bad value.
    """
    kind = registry.find("evictions", name)
    known = [*_WHEN, *(f.name if f.name != "lam" else "lambda" for f in fields(kind))]
    settings = {("lambda" if key == "lam" else key): value for key, value in settings.items()}
    for key in settings:
        if key not in known:
            raise unknown(f"setting of {name}", key, known, code="reasoning.unknown-setting")
    when = {key: settings.pop(key) for key in _WHEN if key in settings}
    lam = settings.pop("lambda", 0.1)
    if isinstance(lam, bool) or not isinstance(lam, int | float) or not 0 <= lam <= 1:
        raise KavaError(
            f"compress {name}: lambda is {lam!r}; give 0 to 1",
            code="reasoning.bad-setting",
            key="lambda",
        )
    return Plan(kind(lam=lam, **settings), name, **when)


#: Models inside a `compressed` block.
_busy: WeakSet[PreTrainedModel] = WeakSet()


@contextmanager
def compressed(
    model: PreTrainedModel, name: str | Plan = "rkv_decoding", **settings: Any
) -> Iterator[Log]:
    """Compress every cache that `model` fills inside the block.

    Args:
        model: any causal language model of transformers, or one that peft has wrapped; of a
            `Reasoner`, its `lm`.
        name: an eviction of this package, or a plan.
        settings: see `plan`.

    Raises:
        KavaError: at once, for a bad setting or a model that cannot be compressed; in a call, for a
            cache or a kind of search that cannot. A cache from inside the block that is continued
            in another block is refused too.
    """
    chosen = name if isinstance(name, Plan) else plan(name, **settings)
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(lm, PreTrainedModel):
        raise KavaError(
            f"compressed: a {type(lm).__name__} cannot be compressed while decoding; give a causal "
            "language model of transformers, of a Reasoner its lm",
            code="inference.not-a-model",
            key=type(lm).__name__,
        )
    compressor = _Compressor(lm, chosen)
    if lm in _busy:
        raise KavaError(
            "compressed: this model is inside such a block already", code="inference.nested-blocks"
        )
    attention, own = lm.config._attn_implementation, vars(lm).get("forward")

    @functools.wraps(compressor.plain)  # `generate` reads from the signature what a model takes
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
    """Numbers of the layers whose every query sees every column before it."""
    config, kind = lm.config.get_text_config(), type(lm).__name__
    provided = any(
        getattr(lm, name, False) for name in ("_supports_sdpa", "_supports_attention_backend")
    )
    if lm.config.is_encoder_decoder or not provided:
        raise KavaError(
            f"compressed: {kind} cannot be compressed while decoding; it has to be a decoder whose "
            "attention transformers lets others provide",
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
            f"compressed: no layer of {kind} attends to everything; all are bounded",
            code="inference.all-bounded",
            key=kind,
        )
    return layers


@dataclass
class _Rows:
    """One cache under compression.

    layers: by number, those that shrink.
    mask: [B, S], true at columns held that are real; the same for every layer and head.
    counts: real columns held of each row (on the host).
    queries: of the last columns by layer, [B, heads, <= window, D].   observed: their mask.
    """

    layers: dict[int, ShrinkingLayer]
    mask: Tensor
    counts: list[int]
    observed: Tensor
    queries: dict[int, Tensor] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)
    softcap: dict[int, float | None] = field(default_factory=dict)
    compressed: bool = False

    @property
    def seen(self) -> int:
        """Columns that the cache was given."""
        return next(iter(self.layers.values())).seen

    def append(self, new: Tensor, record: QueryRecord, window: int) -> None:
        """Take in n columns that a forward pass has added; `new` [B, n] says which are real."""
        self.mask = torch.cat((self.mask, new), dim=1)
        self.counts = [a + b for a, b in zip(self.counts, new.sum(1).tolist(), strict=True)]
        self.observed = torch.cat((self.observed, new[:, -window:]), dim=1)[:, -window:]
        for layer, held in self.layers.items():
            if layer not in record.queries or held.keys.shape[2] != self.mask.shape[1]:
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
    """A model's forward pass with the compression around it."""

    def __init__(self, lm: PreTrainedModel, chosen: Plan):
        self.plan, self.log = chosen, Log()
        self.layers = _full_attention_layers(lm)
        self.config, self.plain = lm.config.get_text_config(), lm.forward
        self.names = list(inspect.signature(self.plain).parameters)
        self.caches: WeakKeyDictionary[DynamicCache, _Rows] = WeakKeyDictionary()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own forward pass returns."""
        call = {**dict(zip(self.names, args, strict=False)), **kwargs}
        inputs = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
        rows = self.rows(call, inputs)
        new = _real(call, inputs, rows.seen)[:, rows.seen :]
        if rows.compressed:
            call["attention_mask"] = self.mask(call, inputs, rows, new)
        with record_queries(slice(-self.plan.window, None)) as record:
            output = self.plain(**call)
        rows.append(new, record, self.plan.window)
        self.log.seen = max(self.log.seen, rows.seen)
        self.log.held = max(self.log.held, rows.mask.shape[1])
        self.compress(rows)
        return output

    def rows(self, call: dict[str, Any], inputs: Tensor) -> _Rows:
        """The state of the call's cache, which begins here if the cache is new to this block."""
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
            past = next(iter(layers.values())).seen
            mask = _real(call, inputs, past)[:, :past]
            self.caches[cache] = _Rows(layers, mask, mask.sum(1).tolist(), observed=mask[:, :0])
        return self.caches[cache]

    def mask(self, call: dict[str, Any], inputs: Tensor, rows: _Rows, new: Tensor) -> Any:
        """The attention mask over the columns held, in the form that the model takes."""
        full = all(count == rows.mask.shape[1] for count in rows.counts)
        no_mask = full and new.shape[1] == 1 and bool(new.all())
        held = None if no_mask else masks.causal_mask(rows.mask, new)
        if len(self.layers) == self.config.num_hidden_layers:
            return held
        embeds = torch.empty(*inputs.shape[:2], 0, device=inputs.device)
        by_kind = create_masks_for_generate(
            self.config, embeds, call.get("attention_mask"), call["past_key_values"]
        )
        return {**by_kind, "full_attention": held}

    @torch.no_grad()
    def compress(self, rows: _Rows) -> None:
        """Bring rows that are full down to the budget, and cut columns that no row needs."""
        budget = self.plan.budget
        full = [b for b, count in enumerate(rows.counts) if count >= self.plan.full]
        if not full or rows.observed.shape[1] < self.plan.window:
            return
        longest = max(rows.counts[b] for b in full)
        for b in full:
            rows.counts[b] = budget
        width = max(rows.counts)
        device = rows.mask.device
        # Pads first, then the real columns in reading order: row by row flush with the right edge.
        order = rows.mask.int().argsort(dim=1, stable=True)
        chosen = torch.tensor(full, device=device)
        real = rows.mask.gather(1, order)[chosen, -longest:]
        for layer, held in rows.layers.items():
            heads = held.keys.shape[1]
            columns = order[chosen, None, -longest:].expand(-1, heads, -1)
            scored = self.eviction_inputs(
                rows, layer, chosen, gather(held.keys[chosen], columns), real
            )
            kept, _ = self.plan.eviction.keep(scored, budget)
            index = order[:, None, -width:].repeat(1, heads, 1)
            index[chosen, :, -budget:] = columns.gather(2, kept)
            held.hold(gather(held.keys, index), gather(held.values, index))
        counts = torch.tensor(rows.counts, device=device)
        rows.mask = torch.arange(width, device=device) >= width - counts[:, None]
        rows.compressed = True
        self.log.compressions += 1

    def eviction_inputs(
        self, rows: _Rows, layer: int, chosen: Tensor, keys: Tensor, real: Tensor
    ) -> EvictionInputs:
        """What the eviction sees of one layer of the chosen rows, the last `window` observing."""
        window, attention = self.plan.window, None
        if self.plan.eviction.needs_attention:
            before = real.clone()
            before[:, -window:] = False
            attention = answer_attention(
                rows.queries[layer][chosen],
                keys,
                before,
                scaling=rows.scaling[layer],
                softcap=rows.softcap[layer],
            )
        return EvictionInputs(keys, real, attention, rows.observed[chosen], recent=window)


def _real(call: dict[str, Any], inputs: Tensor, past: int) -> Tensor:
    """[B, past + n], true at the real columns of a cache and of n new inputs."""
    shape = inputs.shape[0], past + inputs.shape[1]
    mask = call.get("attention_mask")
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=inputs.device)
    if not isinstance(mask, Tensor) or mask.shape != shape:
        given = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise KavaError(
            f"compressed: attention_mask is {given}; it has to be {list(shape)}, a column for each "
            "token that the cache has seen and each new one",
            code="inference.bad-mask",
            key="attention_mask",
        )
    return mask.to(inputs.device).bool()
