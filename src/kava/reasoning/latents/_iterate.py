"""The loop shared by rules that refine all latents in parallel: pass 0 with <bot>, then T passes.

The last pass also contains <eot> and whatever follows it (in training, the answer). Because
attention is causal, this equals a separate pass and costs less.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kava.backbones import cache
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents._settle import iterate_until_converged
from kava.reasoning.latents._watch import report_pass
from kava.reasoning.states import AutoIterations, LatentState, Suffix
from kava.shapes import Float


def iterate(
    reasoner: ReasonerBase,
    question: MaskedCache,
    num_latents: int,
    num_iterations: int | AutoIterations,
    suffix: Suffix,
    keep_all: bool,
    next_inputs: Callable[
        [Float[Tensor, "batch columns hidden"]], Float[Tensor, "batch latents hidden"]
    ],
) -> LatentState:
    """Refine all latents in parallel: pass 0 over [<bot>, <latent> x M], then T more passes.

    Args:
        question: KV(Q), the KV cache of the question.
        num_latents: M.
        num_iterations: T; with 0 the <latent> embeddings are used unchanged (pause tokens).
        suffix: what follows the latents in the last pass; begins with <eot>.
        keep_all: also keep the latents' keys, values and hidden states of passes 0 .. T - 1.
        next_inputs: computes the next inputs [batch, latents, hidden] from the last layer's hidden
            states of a pass: [batch, 1 + latents, hidden] in pass 0, where <bot> is the first
            column, and [batch, latents, hidden] in later passes.

    Raises:
        ValueError: `num_iterations` is negative.
    """
    if isinstance(num_iterations, AutoIterations):
        return iterate_until_converged(
            reasoner, question, num_latents, num_iterations, suffix, next_inputs
        )
    batch, start = question.attention_mask.shape[0], question.columns
    inputs = reasoner.special("latent").expand(batch, num_latents, -1)
    bot = reasoner.special("bot").expand(batch, 1, -1)
    context, embeds, offset = question, torch.cat((bot, inputs), dim=1), 1
    columns = start + 1, start + 1 + num_latents
    history, trajectory, states, of_bot = [], [inputs], [], []
    for t in range(num_iterations + 1):
        last = t == num_iterations
        # With masks and positions as in a batch of one. The authors' code of PCCoT passes no mask
        # here, so that latents attend to padding.
        output, after = reasoner.extend(context, embeds, suffix=suffix if last else None)
        reached = output.last_hidden_state[:, offset : offset + num_latents]
        if t == 0:
            of_bot.append(output.last_hidden_state[:, :1])
        report_pass(reached)
        if last or keep_all:
            history.append(cache.key_values(after.past_key_values, *columns))
            states.append(reached)
        if last:
            return LatentState(
                after, output, offset + num_latents, history, trajectory, states, of_bot[0]
            )
        embeds = next_inputs(output.last_hidden_state)
        trajectory.append(embeds)
        if t == 0:
            # Keep <bot> in the cache, but not the latents of pass 0: every later pass recomputes
            # the keys and values of all latents.
            context, offset = after.crop(start + 1), 0
    raise ValueError(f"num_iterations must be 0 or more, not {num_iterations}")
