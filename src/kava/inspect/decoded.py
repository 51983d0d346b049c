"""What latents decode to: their last hidden states, read by the language-model head."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kava.reasoning.reasoner import Reasoner
from kava.reasoning.states import LatentState

TOP = 5

#: The likeliest tokens of one latent with their probabilities, likeliest first.
Top = list[tuple[str, float]]


@dataclass(frozen=True)
class DecodedLatents:
    """What each latent decodes to after each pass.

    passes: `passes[t][i]` is what latent i decodes to after iteration t; pass 0 is iteration 0.
    iterates: whether the method iterates; if not, there is one pass.
    """

    passes: list[list[Top]]
    iterates: bool


def decode_passes(reasoner: Reasoner, state: LatentState) -> DecodedLatents:
    """Decode the latents of every pass that `state` holds, for a single question."""
    passes = [decode_states(reasoner, states[0]) for states in state.states]
    return DecodedLatents(passes, reasoner.method.iterates)


def decode_latents(
    reasoner: Reasoner, question: str, num_iterations: int | Literal["auto"] | None = None
) -> list[Top]:
    """Decode each latent after the last iteration; empty for a method without latents."""
    states = reasoner.think([question], num_iterations).latent_states
    return [] if states is None else decode_states(reasoner, states[0])


@torch.no_grad()
def decode_states(reasoner: Reasoner, states: Tensor) -> list[Top]:
    """Return the likeliest tokens of each hidden state of the last layer.

    Token ids without text are left out. States of zeros, which are those of latents that have not
    begun in this pass, decode to empty texts.

    Args:
        states: [latents, hidden_size].
    """
    scores = reasoner.logits(states).float()
    if reasoner.unreadable_ids is not None:
        scores = scores.masked_fill(reasoner.unreadable_ids, -torch.inf)
    best = scores.softmax(-1).topk(TOP, dim=-1)
    return [
        [
            (reasoner.tokenizer.decode([i]), float(f"{p:.4g}")) if begun else ("", 0.0)
            for i, p in zip(ids, chances, strict=True)
        ]
        for ids, chances, begun in zip(
            best.indices.tolist(), best.values.tolist(), states.any(dim=-1).tolist(), strict=True
        )
    ]
