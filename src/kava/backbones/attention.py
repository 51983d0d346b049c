"""The answer-to-reasoning block of the teacher's attention, without full attention weights.

The compressor needs softmax over C of (q_answer . k_C) and nothing else. Queries of the answer
tokens are recorded as they pass through transformers' attention interface; keys are already in
the cache. The backbone itself runs scaled-dot-product attention throughout; where a model caps its
logits (Gemma-2), which that cannot do, attention over a block of query rows at a time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION_NAME = "kava"  # transformers asks a model for sdpa support if that is in the name


@dataclass
class QueryRecord:
    """Query states of chosen columns by layer, [B, heads, columns, D], after rotary embedding.

    scaling, softcap, window: what the layer's attention does with them; None where it does not.
    """

    columns: slice
    queries: dict[int, Tensor] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)
    softcap: dict[int, float | None] = field(default_factory=dict)
    window: dict[int, int | None] = field(default_factory=dict)


_recording: ContextVar[QueryRecord | None] = ContextVar("kava_query_record", default=None)
#: How many record, in all threads. What is compiled can ask this, and not a ContextVar.
_recorders = 0
_counting = threading.Lock()


@contextmanager
def record_queries(columns: slice) -> Iterator[QueryRecord]:
    """Record the queries of `columns` of every attention call inside the block, detached."""
    record = QueryRecord(columns)
    token = _recording.set(record)
    try:
        with _counted(1):
            yield record
    finally:
        _recording.reset(token)


def replayed() -> AbstractContextManager[None]:
    """For a later run of what runs now: inside, the same code runs, but nothing is recorded.

    Where queries are recorded, torch.compile makes another version of a layer, which keeps other
    tensors for the backward pass.
    """
    return _counted(int(_recorders > 0))


@contextmanager
def _counted(number: int) -> Iterator[None]:
    global _recorders
    with _counting:
        _recorders += number
    try:
        yield
    finally:
        with _counting:
            _recorders -= number


#: Whether attention goes the way of GPUs on CPUs too.
_as_on_gpus = False


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Inside, attention holds on a CPU what it would hold on a GPU. Slower, for counting memory."""
    global _as_on_gpus
    before, _as_on_gpus = _as_on_gpus, True
    try:
        yield
    finally:
        _as_on_gpus = before


@torch.compiler.disable
def _record(module: nn.Module, query: Tensor, settings: dict[str, Any]) -> None:
    record = _recording.get()
    if record is None:  # somebody else's, or a replay
        return
    layer = cast(int, module.layer_idx)
    # A copy: a view would keep the queries of every column alive.
    record.queries[layer] = query[:, :, record.columns].detach().clone()
    record.scaling[layer] = settings.get("scaling") or query.shape[-1] ** -0.5
    record.softcap[layer] = settings.get("softcap")
    record.window[layer] = settings.get("sliding_window")


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if _recorders:
        _record(module, query, kwargs)  # pyright: ignore[reportCallIssue] `disable` is not typed
    if kwargs.get("softcap") is not None:
        return capped_attention(query, key, value, attention_mask, **kwargs), None
    # On a CPU the bits of plain decoding stay those of transformers.
    fewest = 2 if _groups_as_they_are(key) else 1
    if attention_mask is None or not fewest <= query.shape[2] <= _most_rows(key):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return masked_attention(query, key, value, attention_mask, **kwargs), None


def _most_rows(key: Tensor) -> float:
    """Queries up to which heads that share keys and values are attended to as rows of one head.

    A mask as numbers is held for each row; beyond so many that takes more than repeating keys and
    values would. CPUs need neither.
    """
    return math.inf if _groups_as_they_are(key) else 2 * key.shape[1] * key.shape[3]


def _groups_as_they_are(key: Tensor) -> bool:
    """Whether the kernel takes fewer heads of keys than of queries together with a mask."""
    return key.device.type == "cpu" and not _as_on_gpus


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    """softmax(q . k * scaling) v where `mask` is true, keys and values of grouped heads once.

    Where there is a mask, transformers repeats them for each query head, since CUDA's kernels take
    no groups then (5.17 for a single query too, and so the whole cache for each token). The
    CPU's does. For CUDA's, query heads that share keys and values become further rows of one head:
    the same numbers, and nothing is repeated but the mask (ours).

    Args:
        query: [B, H * G, n, D]; G query heads share a key/value head.
        key, value: [B, H, S, D].
        mask: boolean [B, 1, n, S].

    Returns:
        [B, n, H * G, D].
    """
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or _groups_as_they_are(key):
        output = attend(query, key, value, mask, enable_gqa=groups > 1)
        return output.transpose(1, 2).contiguous()
    rows = query.unflatten(1, (-1, groups)).flatten(2, 3)  # [B, H, G * n, D]
    seen = mask if mask.shape[2] == 1 else mask.repeat(1, 1, groups, 1)
    output = attend(rows, key, value, seen)
    return output.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


ROWS = 128  # of queries at a time; their attention weights are all that ever exists


def capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    """softmax(c tanh(q . k * scaling / c)) v, `ROWS` queries at a time.

    Weights are made anew in the backward pass, so that no more than one block of them is held.

    Args:
        query: [B, H * G, n, D]; G query heads share a key/value head.
        key, value: [B, H, S, D].
        mask: boolean [B, 1, n, S]; causal if not given.

    Returns:
        [B, n, H * G, D].
    """
    rows, columns = query.shape[2], key.shape[2]
    scale = scaling or query.shape[-1] ** -0.5
    if mask is None:
        ones = torch.ones(1, 1, rows, columns, dtype=torch.bool, device=query.device)
        mask = ones.tril(columns - rows)

    def block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        logits = grouped_logits(query, key, scale, softcap)
        logits = logits.masked_fill(~mask[:, :, None], torch.finfo(logits.dtype).min)
        weights = torch.nn.functional.dropout(logits.softmax(-1).to(value.dtype), dropout)
        return torch.einsum("bhgac,bhcd->bahgd", weights, value).flatten(2, 3)

    blocks = [
        checkpoint(
            block, part, key, value, seen, use_reentrant=False, preserve_rng_state=dropout > 0
        )
        for part, seen in zip(query.split(ROWS, dim=2), mask.split(ROWS, dim=2), strict=True)
    ]
    return torch.cat(blocks, dim=1)


AttentionInterface.register(IMPLEMENTATION_NAME, _sdpa)
AttentionMaskInterface.register(IMPLEMENTATION_NAME, sdpa_mask)


def grouped_logits(
    queries: Tensor, keys: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """q . k * scaling for each query head of each key/value head, soft-capped as the model does.

    Args:
        queries: [B, H * G, A, D]; G query heads share a key/value head.
        keys: [B, H, C, D].

    Returns:
        [B, H, G, A, C] in fp32.
    """
    batch, heads, _, size = keys.shape
    grouped = queries.reshape(batch, heads, -1, queries.shape[2], size).float()
    with torch.autocast(keys.device.type, enabled=False):  # it would make bf16 of products
        logits = torch.einsum("bhgad,bhcd->bhgac", grouped, keys.float()) * scaling
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def answer_attention(
    queries: Tensor,
    keys: Tensor,
    keys_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """A = softmax over C of the group's largest logit (KaVa, Listing 1; spec, Cache compression).

    Scaling, soft cap and sliding window are the model's own (ours: the paper's models have
    neither cap nor window), so that A is the attention that the answer really pays.

    Args:
        queries: [B, H * G, A, D] of the answer tokens.
        keys: [B, H, C, D] of the reasoning tokens.
        keys_mask: [B, C], true at real reasoning tokens; or [B, A, C], those an answer token sees.

    Returns:
        [B, H, A, C]; zero at pads, and everywhere for an answer token that sees no reasoning.
    """
    logits = grouped_logits(queries, keys, scaling, softcap).amax(dim=2)
    mask = keys_mask[:, None] if keys_mask.dim() == 2 else keys_mask
    return masked_softmax(logits, mask[:, None])


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among unmasked entries; zeros where nothing is unmasked."""
    weights = torch.softmax(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=-1)
    return weights * mask
