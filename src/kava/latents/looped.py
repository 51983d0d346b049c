"""Latents refined in loops over their own states (LOTUS, arXiv:2606.31779; spec, Methods).

    pass 0      h^0 = f([<bot>, E] | KV(Q))
    t = 1..R    h^t = f(E + P(h^{t-1}) | KV(Q, <bot>))

E is the <latent> embedding at every position; LOTUS itself has no projection. As in `jacobi`, the
last pass also carries <eot> and whatever follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
    """Refine `num_latents` latents in `num_iterations` loops after pass 0.

    Args:
        question: KV(Q).
        num_latents: M = K x c.
        num_iterations: R.
        tail: what follows the latents in the last pass; begins with <eot>.
        keep_all: also keep the latents' keys and values of passes 0 .. R - 1.
    """
    batch, start = question.attention_mask.shape[0], question.columns
    blank = reasoner.special("latent").expand(batch, num_latents, -1)
    bot = reasoner.special("bot").expand(batch, 1, -1)
    context, embeds, offset = question, torch.cat((bot, blank), dim=1), 1
    history, trajectory = [], [blank]
    for t in range(num_iterations + 1):
        last = t == num_iterations
        output, after = reasoner.extend_latents(context, embeds, tail if last else None)
        end = offset + num_latents
        states = output.last_hidden_state[:, offset:end]
        if last or keep_all:
            columns = start + 1, start + 1 + num_latents
            history.append(cache.key_values(after.past_key_values, *columns))
        if last:
            break
        if t == 0:
            context, offset = after.crop(start + 1), 0
        embeds = blank + reasoner.project(states)
        trajectory.append(embeds)
    return LatentState(after, output, end, history, trajectory, states)
