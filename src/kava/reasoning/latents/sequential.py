"""Sequential latents: generated one at a time, with one forward pass each (CODI, Coconut).

z_1 = P(h(<bot>)),  z_{i+1} = P(h(z_i))

Sources: CODI, arXiv:2502.21074; Coconut, arXiv:2412.06769; see docs/papers.md.
"""

import torch
from torch import Tensor

from kava.backbones import cache
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents._watch import report_pass
from kava.reasoning.states import LatentState, Suffix
from kava.shapes import Int


def think(
    reasoner: ReasonerBase,
    question: MaskedCache,
    num_latents: int,
    suffix: Suffix,
    lengths: Int[Tensor, "batch"] | None = None,
) -> LatentState:
    """Generate M latents, each projected from the hidden state of the one before it.

    Each forward pass contains one latent of every example and continues from the KV cache of the
    latents before it.

    Args:
        question: KV(Q), the KV cache of the question.
        num_latents: M; M forward passes follow that of <bot>. With 0 the suffix follows <bot>.
        suffix: what follows the latents, in the forward pass of the last one; begins with <eot>.
        lengths: [batch], number of latents of each example if not all have M; the remaining ones
            are padding.
    """
    batch, start = question.attention_mask.shape[0], question.columns
    columns = torch.arange(num_latents, device=question.attention_mask.device)
    real = columns < (num_latents if lengths is None else lengths[:, None])
    real = real.expand(batch, num_latents)
    embeds = reasoner.special("bot").expand(batch, 1, -1)
    mask = question.attention_mask.new_ones(batch, 1)
    inputs, states, after = [], [], question
    for i in range(num_latents):
        output, after = reasoner.extend(after, embeds, mask)
        states.append(output.last_hidden_state[:, -1:])
        if i > 0:  # the first forward pass is that of <bot>, not of a latent
            report_pass(states[-1])
        # An example with fewer latents gets padding here, so that all have the same columns.
        embeds, mask = reasoner.project(states[-1]), real[:, i : i + 1]
        inputs.append(embeds)
    output, after = reasoner.extend(after, embeds, mask, suffix=suffix)
    states.append(output.last_hidden_state[:, :1])
    if num_latents:
        report_pass(states[-1])
    return LatentState(
        cache=after,
        output=output,
        suffix_start=1,
        key_values=[cache.key_values(after.past_key_values, start + 1, start + 1 + num_latents)],
        inputs=[torch.cat(inputs, dim=1) if inputs else embeds[:, :0]],
        states=[torch.cat(states[1:], dim=1) if inputs else states[0][:, :0]],
        bot=states[0],
    )
