"""The teacher's attention from answer tokens to reasoning tokens, without full attention weights.

Cache compression only needs softmax over C of (q_answer . k_C). The queries of the answer tokens
are recorded as they pass through transformers' attention interface; the keys are already in the
cache. The backbone itself always uses scaled-dot-product attention (SDPA). SDPA does not support a
soft cap on logits (Gemma-2), so attention with a soft cap is computed here, for a block of query
rows at a time.
"""

import math
import os
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
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kava.backbones.masks import to_additive

# The name must not contain "sdpa": transformers would then require the model to support SDPA.
IMPLEMENTATION_NAME = "kava"
#: Environment variable that keeps cuDNN's attention, if it is 1.
CUDNN = "KAVA_CUDNN_ATTENTION"


def choose_kernels() -> None:
    """Exclude cuDNN's attention in this process, unless `KAVA_CUDNN_ATTENTION` is 1.

    From version 2.11 on, torch prefers it on Hopper GPUs if there is a mask, as there always is
    here. Its backward pass returns NaN for some lengths and masks (query lengths of 64 modulo 128
    with very negative logits, seen in Qwen2.5-0.5B), and it builds a new plan for each new
    shape, which nearly every batch has. Without it, torch uses its memory-efficient kernel.
    """
    if os.environ.get(CUDNN) != "1":
        torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass
class QueryRecord:
    """Recorded queries of selected columns, and the attention settings of each layer.

    Args:
        columns: the columns to record.
        queries: for each layer, [batch, heads, columns, head_dim], after the rotary embedding.
        scaling, softcap, window: for each layer, the scaling, the soft cap and the sliding window
            of its attention; None for a layer without soft cap or window.
    """

    columns: slice
    queries: dict[int, Tensor] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)
    softcap: dict[int, float | None] = field(default_factory=dict)
    window: dict[int, int | None] = field(default_factory=dict)


_recording: ContextVar[QueryRecord | None] = ContextVar("kava_query_record", default=None)
#: Number of active recorders in all threads. Compiled code can read this, but not a ContextVar.
_recorders = 0
_counting = threading.Lock()


@contextmanager
def record_queries(columns: slice) -> Iterator[QueryRecord]:
    """Record the detached queries of `columns` of every attention call in the `with` block."""
    record = QueryRecord(columns)
    token = _recording.set(record)
    try:
        with _count_recorders(1):
            yield record
    finally:
        _recording.reset(token)


def recompute_context() -> AbstractContextManager[None]:
    """Return a context manager for recomputing the current forward pass without recording.

    While queries are recorded, torch.compile compiles another version of a layer, which saves other
    tensors for the backward pass. The recomputation must use the same version as the first run.
    """
    return _count_recorders(int(_recorders > 0))


@contextmanager
def _count_recorders(number: int) -> Iterator[None]:
    """Add `number` to the count of active recorders inside the `with` block."""
    global _recorders
    with _counting:
        _recorders += number
    try:
        yield
    finally:
        with _counting:
            _recorders -= number


#: Whether attention on a CPU uses the code path of GPUs.
_as_on_gpus = False


@contextmanager
def allocate_as_on_gpu() -> Iterator[None]:
    """Let attention on a CPU allocate what it would allocate on a GPU, inside the `with` block.

    This is slower; it is used to count memory.
    """
    global _as_on_gpus
    before, _as_on_gpus = _as_on_gpus, True
    try:
        yield
    finally:
        _as_on_gpus = before


@torch.compiler.disable
def _record(module: nn.Module, query: Tensor, settings: dict[str, Any]) -> None:
    """Record the queries and the attention settings of one layer, if this thread records."""
    record = _recording.get()
    if record is None:  # another thread records, or this is a recomputation
        return
    layer = cast(int, module.layer_idx)
    # Copy, because a view would keep the queries of all columns in memory.
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
    """Attention function registered with transformers: record queries, then compute attention."""
    if _recorders:
        _record(module, query, kwargs)  # pyright: ignore[reportCallIssue] `disable` is not typed
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[2]]  # it is wider, see `to_additive`
    one = None if attention_mask is None else attention_mask[:, :1]  # without copies for groups
    if kwargs.get("softcap") is not None:
        return capped_attention(query, key, value, one, **kwargs), None
    # On a CPU, a single query goes to transformers, so plain decoding is bitwise equal to theirs.
    fewest = 2 if _supports_grouped_heads(key) else 1
    most = _max_grouped_queries(key, key.shape[1] * key.shape[3])
    if attention_mask is None or not fewest <= query.shape[2] <= most:
        return sdpa_attention_forward(module, query, key, value, one, **kwargs)
    return masked_attention(query, key, value, attention_mask, **kwargs), None


def _max_grouped_queries(like: Tensor, width: int) -> float:
    """Return the number of queries up to which grouped heads are computed as rows of one head.

    That computation needs a mask for each row. With more queries, the mask takes more memory than
    repeating keys and values. On CPUs neither is needed.

    Args:
        like: a tensor on the device.
        width: kv_heads * head_dim.
    """
    return math.inf if _supports_grouped_heads(like) else 2 * width


def _supports_grouped_heads(like: Tensor) -> bool:
    """Whether the device's kernel supports grouped-query attention together with a mask."""
    return like.device.type == "cpu" and not _as_on_gpus


def head_sizes(config: Any) -> tuple[int, int, int]:
    """Return the numbers of query heads and of key/value heads, and the size of a head."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, size


def mask_copies(model: PreTrainedModel, embeds: Tensor) -> int:
    """Return how often `masked_attention` needs each row of the mask of a forward pass.

    Args:
        embeds: [batch, columns, hidden], inputs of the pass.
    """
    config = model.config.get_text_config()
    heads, shared, size = head_sizes(config)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    fits = 1 < embeds.shape[1] <= _max_grouped_queries(embeds, shared * size)
    return heads // shared if fits and not (capped or _supports_grouped_heads(embeds)) else 1


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which attention is computed: that of autocast on a device, or `dtype`."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    """Compute softmax(q . k * scaling) v with a mask, without repeating keys and values of groups.

    With a mask, transformers repeats keys and values for each query head, because CUDA kernels do
    not support grouped heads then (in 5.17 also for a single query, which repeats the whole cache
    for each token). The CPU kernel supports them. On CUDA, the query heads that share keys and
    values are computed as additional rows of one head: the result is the same, and only the mask is
    repeated, once for all layers (our addition).

    Args:
        query: [batch, kv_heads * groups, queries, head_dim]; `groups` query heads share a key/value
            head.
        key, value: [batch, kv_heads, columns, head_dim].
        mask: [batch, 1 or groups, queries, columns], a slice of `kava.backbones.masks.to_additive`.

    Returns:
        [batch, queries, kv_heads * groups, head_dim].
    """
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or _supports_grouped_heads(key):
        output = attend(query, key, value, mask[:, :1], enable_gqa=groups > 1)
        return output.transpose(1, 2).contiguous()
    rows = query.unflatten(1, (-1, groups)).flatten(2, 3)  # [B, H, G * n, D]
    # A view, if the mask has its copies already (`mask_copies`) or there is a single query.
    copies = mask if mask.shape[1] == groups else mask[:, :1].expand(-1, groups, -1, -1)
    output = attend(rows, key, value, copies.flatten(1, 2)[:, None])
    return output.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


ROWS = 128  # queries computed at a time; only their attention weights are in memory


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
    """Compute softmax(c tanh(q . k * scaling / c)) v for `ROWS` queries at a time.

    The attention weights are recomputed in the backward pass, so that at most one block of them is
    in memory.

    Args:
        query: [batch, kv_heads * groups, queries, head_dim]; `groups` query heads share a key/value
            head.
        key, value: [batch, kv_heads, columns, head_dim].
        mask: [batch, 1, queries, columns], a slice of `kava.backbones.masks.to_additive`; causal
            if None.
        softcap: c.

    Returns:
        [batch, queries, kv_heads * groups, head_dim].
    """
    rows, columns = query.shape[2], key.shape[2]
    scale = scaling or query.shape[-1] ** -0.5
    if mask is None:
        ones = torch.ones(1, 1, rows, columns, dtype=torch.bool, device=query.device)
        mask = to_additive(ones.tril(columns - rows), query.dtype)[..., :columns]

    def block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        logits = grouped_logits(query, key, scale, softcap)
        logits = logits + mask[:, :, None]
        weights = torch.nn.functional.dropout(logits.softmax(-1).to(value.dtype), dropout)
        return torch.einsum("bhgac,bhcd->bahgd", weights, value).flatten(2, 3)

    blocks = [
        checkpoint(
            block, part, key, value, part_mask, use_reentrant=False, preserve_rng_state=dropout > 0
        )
        for part, part_mask in zip(query.split(ROWS, dim=2), mask.split(ROWS, dim=2), strict=True)
    ]
    return torch.cat(blocks, dim=1)


AttentionInterface.register(IMPLEMENTATION_NAME, _sdpa)


def _mask_of_generate(*sizes: Any, dtype: torch.dtype = torch.float32, **named: Any) -> Any:
    """Mask function registered with transformers, for forward passes of its `generate`."""
    mask = sdpa_mask(*sizes, **named)
    return None if mask is None else to_additive(mask, compute_dtype(dtype, mask.device))


AttentionMaskInterface.register(IMPLEMENTATION_NAME, _mask_of_generate)


def grouped_logits(
    queries: Tensor, keys: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """Compute the attention logits q . k * scaling, with the model's soft cap, if any.

    Args:
        queries: [batch, kv_heads * groups, answer, head_dim]; `groups` query heads share a
            key/value head.
        keys: [batch, kv_heads, steps, head_dim].

    Returns:
        [batch, kv_heads, groups, answer, steps] in fp32.
    """
    batch, heads, _, size = keys.shape
    grouped = queries.reshape(batch, heads, -1, queries.shape[2], size).float()
    with torch.autocast(keys.device.type, enabled=False):  # autocast would compute it in bf16
        logits = torch.einsum("bhgad,bhcd->bhgac", grouped, keys.float()) * scaling
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def answer_attention(
    queries: Tensor, keys: Tensor, keys_mask: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """Compute the attention A of the answer tokens to the reasoning tokens (KaVa, Listing 1).

    A is the softmax over the C reasoning tokens of the largest logit among the query heads of a
    group (see docs/papers.md, Compressing the teacher's cache). Scaling, soft cap and sliding
    window are those of the model, so that A is the attention that the model itself uses. This is
    our addition, since the models of the paper have neither soft cap nor window.

    Args:
        queries: [batch, kv_heads * groups, answer, head_dim], queries of the answer tokens.
        keys: [batch, kv_heads, steps, head_dim], keys of the reasoning tokens.
        keys_mask: [batch, steps], true at real reasoning tokens; or [batch, answer, steps], true
            where an answer token can attend to a reasoning token.

    Returns:
        [batch, kv_heads, answer, steps]; zero at padding, and zero everywhere for an answer token
        that cannot attend to any reasoning token.
    """
    # Listing 1 takes the maximum over the group before the softmax; pooling the weights after it
    # would give other scores.
    logits = grouped_logits(queries, keys, scaling, softcap).amax(dim=2)
    mask = keys_mask[:, None] if keys_mask.dim() == 2 else keys_mask
    return masked_softmax(logits, mask[:, None])


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Compute a softmax over the unmasked entries of the last axis; zeros if all are masked."""
    # The smallest finite number instead of -inf: a row without any unmasked entry would be NaN,
    # and its gradient would stay NaN even after the multiplication by the mask.
    weights = torch.softmax(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), dim=-1)
    return weights * mask
