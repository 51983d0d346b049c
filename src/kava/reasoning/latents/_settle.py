"""Refine latents until they no longer change: the number of iterations is found, not given (ours).

Each example stops on its own, so that its latents do not depend on the others in its batch. Latents
before the first one that still changes are settled: attention is causal, so nothing that is still
computed reaches them. They keep their inputs, and what all examples have settled is not computed
again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kava.backbones import cache
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents._watch import report_pass
from kava.reasoning.states import AutoIterations, LatentState, Suffix
from kava.shapes import Float, Int


def iterate_until_converged(
    reasoner: ReasonerBase,
    question: MaskedCache,
    num_latents: int,
    limits: AutoIterations,
    suffix: Suffix,
    next_inputs: Callable[
        [Float[Tensor, "batch columns hidden"]], Float[Tensor, "batch latents hidden"]
    ],
) -> LatentState:
    """Refine all latents in parallel, for each example until no latent changes any more.

    The suffix is part of every pass, which costs less than a pass of its own. The other arguments
    are described in `iterate`.
    """
    batch, first = question.attention_mask.shape[0], question.columns + 1
    inputs = reasoner.special("latent").expand(batch, num_latents, -1)
    bot = reasoner.special("bot").expand(batch, 1, -1)
    output, after = reasoner.extend(question, torch.cat((bot, inputs), dim=1))
    of_bot, states = output.last_hidden_state[:, :1], output.last_hidden_state[:, 1:]
    report_pass(states)
    trajectory, inputs = [inputs], next_inputs(output.last_hidden_state)
    iterations = torch.zeros(batch, dtype=torch.long, device=inputs.device)
    settled, done = torch.zeros_like(iterations), 0
    columns = torch.arange(num_latents, device=inputs.device)
    for t in range(1, limits.max_iterations + 1):
        trajectory.append(inputs)
        # Latents that all examples have settled keep their keys and values in the cache.
        output, after = reasoner.extend(after.crop(first + done), inputs[:, done:], suffix=suffix)
        fresh = output.last_hidden_state[:, : num_latents - done]
        states = torch.cat((states[:, :done], fresh), dim=1)
        report_pass(states)
        # `settled` is still that of the pass before: T counts the passes until an example settled.
        iterations = iterations.masked_fill(settled < num_latents, t)
        update = next_inputs(states)
        settled = _count_settled(inputs, update, limits.tolerance)
        least = int(settled.min())
        if least == num_latents or t == limits.max_iterations:
            break
        inputs = torch.where((columns < settled[:, None])[..., None], inputs, update)
        done = least
    return LatentState(
        cache=after,
        output=output,
        suffix_start=num_latents - done,
        key_values=[cache.key_values(after.past_key_values, first, first + num_latents)],
        inputs=trajectory,
        states=[states],
        bot=of_bot,
        iterations=iterations,
    )


def _count_settled(
    inputs: Float[Tensor, "batch latents hidden"],
    update: Float[Tensor, "batch latents hidden"],
    tolerance: float,
) -> Int[Tensor, "batch"]:
    """Return the number of latents before the first one whose input still changes, [batch]."""
    change = torch.linalg.vector_norm((update - inputs).float(), dim=-1)
    size = torch.linalg.vector_norm(inputs.float(), dim=-1)
    return (change <= tolerance * size).long().cumprod(dim=1).sum(dim=1)
