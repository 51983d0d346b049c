"""Latents refined all at once (PCCoT's Jacobi iteration; spec, Latents).

    pass 0      h^0 = f([<bot>, <latent> x M] | KV(Q));  X^1_i = P(h^0_{i-1})
    t = 1..T    h^t = f(X^t | KV(Q, <bot>));             X^{t+1} = [X^1_1, P(h^t_1) ...]

The last pass also carries <eot> and whatever follows it (the answer, in training): attention is
causal, so this equals a further pass and costs less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kava import cache
from kava.latents._state import LatentState, Tail
from kava.thought import Thought

if TYPE_CHECKING:
    from kava.model import Reasoner


def think(
    reasoner: Reasoner,
    question: Thought,
    num_latents: int,
    num_iterations: int,
    tail: Tail,
    keep_all: bool = False,
) -> LatentState:
    """Refine `num_latents` latents in `num_iterations` passes after pass 0.

    Args:
        question: KV(Q).
        num_latents: M.
        num_iterations: T; 0 leaves the <latent> embeddings as they are (pause tokens).
        tail: what follows the latents in the last pass; begins with <eot>.
        keep_all: also keep the latents' keys and values of passes 0 .. T - 1.
    """
    batch, start = question.attention_mask.shape[0], question.columns
    inputs = reasoner.special("latent").expand(batch, num_latents, -1)
    bot = reasoner.special("bot").expand(batch, 1, -1)
    context, embeds, offset = question, torch.cat((bot, inputs), dim=1), 1
    first: Tensor | None = None
    history, trajectory = [], [inputs]
    for t in range(num_iterations + 1):
        last = t == num_iterations
        output, after = reasoner.extend_latents(context, embeds, tail if last else None)
        if last or keep_all:
            columns = start + 1, start + 1 + num_latents
            history.append(cache.key_values(after.past_key_values, *columns))
        if last:
            break
        projected = reasoner.project(output.last_hidden_state)
        if first is None:
            first, context, offset = projected[:, :1], after.crop(start + 1), 0
            inputs = projected[:, :num_latents]
        else:
            inputs = torch.cat((first, projected[:, : num_latents - 1]), dim=1)
        embeds = inputs
        trajectory.append(inputs)
    end = offset + num_latents
    latents = output.last_hidden_state[:, offset:end]
    return LatentState(after, output, end, history, trajectory, latents)
