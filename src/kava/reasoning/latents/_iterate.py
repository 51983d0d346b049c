"""The frame of latents that are refined all at once: pass 0 with <bot>, then T passes after it.

The last pass also carries <eot> and whatever follows it (the answer, in training): attention is
causal, so this equals a further pass and costs less.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kava.backbones import cache
from kava.backbones.thought import Thought
from kava.reasoning.interface import ReasonerProtocol
from kava.reasoning.latents._watch import report_pass
from kava.reasoning.states import LatentState, Suffix
from kava.shapes import Float


def iterate(
    reasoner: ReasonerProtocol,
    question: Thought,
    num_latents: int,
    num_iterations: int,
    suffix: Suffix,
    keep_all: bool,
    following: Callable[
        [Float[Tensor, "batch columns hidden"]], Float[Tensor, "batch latents hidden"]
    ],
) -> LatentState:
    """Pass 0 over [<bot>, <latent> x M], then T passes over what `following` makes of the last.

    Args:
        question: KV(Q).
        num_latents: M.
        num_iterations: T; 0 leaves the <latent> embeddings as they are (pause tokens).
        suffix: what follows the latents in the last pass; begins with <eot>.
        keep_all: also keep the latents' keys, values and states of passes 0 .. T - 1.
        following: from a pass's last states, [B, 1 + M, d] with <bot> first in pass 0 and
            [B, M, d] after it, to the next inputs [B, M, d].
    """
    batch, start = question.attention_mask.shape[0], question.columns
    inputs = reasoner.special("latent").expand(batch, num_latents, -1)
    bot = reasoner.special("bot").expand(batch, 1, -1)
    context, embeds, offset = question, torch.cat((bot, inputs), dim=1), 1
    columns = start + 1, start + 1 + num_latents
    history, trajectory, states = [], [inputs], []
    for t in range(num_iterations + 1):
        last = t == num_iterations
        output, after = reasoner.extend_latents(context, embeds, suffix if last else None)
        reached = output.last_hidden_state[:, offset : offset + num_latents]
        report_pass(reached)
        if last or keep_all:
            history.append(cache.key_values(after.past_key_values, *columns))
            states.append(reached)
        if last:
            return LatentState(after, output, offset + num_latents, history, trajectory, states)
        embeds = following(output.last_hidden_state)
        trajectory.append(embeds)
        if t == 0:
            context, offset = after.crop(start + 1), 0
    raise ValueError(f"num_iterations is {num_iterations}")
