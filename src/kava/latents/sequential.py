"""Latents one at a time (CODI, Coconut; spec, Latents).

z_1 = P(h(<bot>)),  z_{i+1} = P(h(z_i)), one backbone call each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kava import cache
from kava.latents._state import LatentState, Tail
from kava.thought import Thought

if TYPE_CHECKING:
    from kava.model import Reasoner


def think(reasoner: Reasoner, question: Thought, num_latents: int, tail: Tail) -> LatentState:
    """M latents, each projected from the state of the one before it.

    Args:
        question: KV(Q).
        num_latents: M; M calls follow the one for <bot>.
        tail: what follows the latents, in the call of the last one; begins with <eot>.
    """
    batch, start = question.attention_mask.shape[0], question.columns
    output, after = reasoner.extend_latents(
        question, reasoner.special("bot").expand(batch, 1, -1), None
    )
    inputs = []
    for i in range(num_latents):
        inputs.append(reasoner.project(output.last_hidden_state[:, -1:]))
        last = tail if i == num_latents - 1 else None
        output, after = reasoner.extend_latents(after, inputs[-1], last)
    columns = start + 1, start + 1 + num_latents
    history = [cache.key_values(after.past_key_values, *columns)]
    return LatentState(after, output, 1, history, [torch.cat(inputs, dim=1)])
