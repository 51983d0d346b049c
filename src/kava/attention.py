"""The answer-to-reasoning block of the teacher's attention, without full attention weights.

The compressor needs softmax over C of (q_answer . k_C) and nothing else. Queries of the answer
tokens are recorded as they pass through transformers' attention interface; keys are already in
the cache. The backbone itself runs scaled-dot-product attention throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION_NAME = "kava_sdpa"


@dataclass
class QueryRecord:
    """Query states of chosen columns by layer, [B, heads, columns, D], after rotary embedding."""

    columns: slice
    queries: dict[int, Tensor] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)


_recording: ContextVar[QueryRecord | None] = ContextVar("kava_query_record", default=None)


@contextmanager
def record_queries(columns: slice) -> Iterator[QueryRecord]:
    """Record the queries of `columns` of every attention call inside the block, detached."""
    record = QueryRecord(columns)
    token = _recording.set(record)
    try:
        yield record
    finally:
        _recording.reset(token)


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    record = _recording.get()
    if record is not None:
        layer = module.layer_idx
        # A copy: a view would keep the queries of every column alive.
        record.queries[layer] = query[:, :, record.columns].detach().clone()
        record.scaling[layer] = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION_NAME, _sdpa)
AttentionMaskInterface.register(IMPLEMENTATION_NAME, sdpa_mask)


def grouped_logits(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """q . k * scaling for each query head of each key/value head.

    Args:
        queries: [B, H * G, A, D]; G query heads share a key/value head.
        keys: [B, H, C, D].

    Returns:
        [B, H, G, A, C] in fp32.
    """
    batch, heads, _, size = keys.shape
    grouped = queries.reshape(batch, heads, -1, queries.shape[2], size).float()
    return torch.einsum("bhgad,bhcd->bhgac", grouped, keys.float()) * scaling


def answer_attention(queries: Tensor, keys: Tensor, keys_mask: Tensor, scaling: float) -> Tensor:
    """A = softmax over C of the group's largest logit (KaVa, Listing 1; spec, Cache compression).

    Args:
        queries: [B, H * G, A, D] of the answer tokens.
        keys: [B, H, C, D] of the reasoning tokens.
        keys_mask: [B, C], true at real reasoning tokens.

    Returns:
        [B, H, A, C]; zero at pads, and everywhere for a row without reasoning.
    """
    logits = grouped_logits(queries, keys, scaling).amax(dim=2)
    return masked_softmax(logits, keys_mask[:, None, None, :])


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among unmasked entries; zeros where nothing is unmasked."""
    weights = torch.softmax(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=-1)
    return weights * mask
