"""What the answer attends to: softmax attention of its tokens over everything before them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kava.backbones import cache, masks
from kava.backbones.attention import QueryRecord, grouped_logits, masked_softmax, record_queries
from kava.inspect._numbers import numbers
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.states import LatentState

#: Number of query tokens: the ":" of the prompt, and the first tokens of the answer itself.
ROWS = 3
PARTS = ("question", "<bot>", "latents", "<eot>", "answer")


@dataclass(frozen=True)
class AnswerAttention:
    """Attention weights of the first tokens of the answer.

    A is the number of answer tokens, L of layers, M of latents.

    tokens: the A answer tokens whose attention is shown, as text; the first is the ":" of the
        prompt, or the first token of a method that has no prompt (LOTUS).
    heads: attention to each latent, [A][L][heads][M], over all query heads.
    layers: mean over heads, [A][L][M].
    latents: mean over heads and layers, [A][M].
    shares: the share of the total attention on each of the `parts`, mean over layers and heads,
        [A][5].
    layer_shares: the same shares, mean over heads, [A][L][5].
    group: number of query heads that share a key/value head.
    """

    tokens: list[str]
    heads: list[Any]
    layers: list[Any]
    latents: list[Any]
    parts: tuple[str, ...]
    shares: list[Any]
    layer_shares: list[Any]
    group: int


@torch.no_grad()
def measure_attention(
    reasoner: Reasoner, state: LatentState, prompt: Tensor, answer: Tensor
) -> AnswerAttention:
    """Run a forward pass over prompt and answer; return the attention of the first answer tokens.

    The recorded tokens are the prompt's ":" and the first tokens of the answer.

    Args:
        state: the end of the reasoning: Q, <bot>, latents and <eot>.
        prompt: token ids [1, P].
        answer: token ids [1, n].
    """
    ids = torch.cat((prompt, answer[:, : ROWS - 1]), dim=1)
    rows = slice(prompt.shape[1] - 1, None)
    past, mask = state.cache.attention_mask, torch.ones_like(ids, dtype=torch.bool)
    with record_queries(rows) as record:
        _, after = reasoner.extend(state.cache, reasoner.embed(ids), mask)
    weights = torch.stack(
        [
            _weights(record, layer, keys, past, mask, rows)
            for layer, (keys, _) in enumerate(cache.key_values(after.past_key_values))
        ]
    ).transpose(1, 2)  # [L, A, heads, S]
    weights = weights.transpose(0, 1)
    count = state.latents.shape[1]
    sizes = [past.shape[1] - count - 2, 1, count, 1, ids.shape[1]]
    parts = torch.stack([part.sum(-1) for part in weights.split(sizes, dim=-1)], dim=-1)
    latents = weights.split(sizes, dim=-1)[2]
    heads = record.queries[0].shape[1]
    return AnswerAttention(
        tokens=[reasoner.tokenizer.decode([i]) for i in ids[0, rows].tolist()],
        heads=numbers(latents),
        layers=numbers(latents.mean(2)),
        latents=numbers(latents.mean((1, 2))),
        parts=PARTS,
        shares=numbers(parts.mean((1, 2))),
        layer_shares=numbers(parts.mean(2)),
        group=heads // reasoner.cache_shapes()[0][0],
    )


def _weights(
    record: QueryRecord, layer: int, keys: Tensor, past: Tensor, mask: Tensor, rows: slice
) -> Tensor:
    """Return one layer's attention weights [heads, A, S], of each query head over all S columns."""
    logits = grouped_logits(
        record.queries[layer], keys, scaling=record.scaling[layer], softcap=record.softcap[layer]
    )
    visible = masks.causal_mask(past, mask, record.window[layer])[:, :, rows]
    return masked_softmax(logits, visible[:, :, None])[0].flatten(0, 1)
