"""Jacobi iteration: all latents are refined in parallel (PCCoT, arXiv:2506.18582).

pass 0      h^0 = f([<bot>, <latent> x M] | KV(Q));  X^1_i = P(h^0_{i-1})
t = 1..T    h^t = f(X^t | KV(Q, <bot>));             X^{t+1} = [X^1_1, P(h^t_1) ...]

See docs/papers.md, Latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kava.backbones.thought import Thought
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents._iterate import iterate
from kava.reasoning.states import LatentState, Suffix
from kava.shapes import Float


def think(
    reasoner: ReasonerBase,
    question: Thought,
    num_latents: int,
    num_iterations: int,
    suffix: Suffix,
    keep_all: bool = False,
) -> LatentState:
    """Refine `num_latents` latents in parallel, in `num_iterations` passes after pass 0.

    The arguments are described in `iterate`.
    """
    first: Float[Tensor, "batch 1 hidden"] | None = None

    def following(
        states: Float[Tensor, "batch columns hidden"],
    ) -> Float[Tensor, "batch latents hidden"]:
        nonlocal first
        projected = reasoner.project(states)
        if first is None:  # pass 0, where <bot> is the first column
            first = projected[:, :1]
            return projected[:, :num_latents]
        return torch.cat((first, projected[:, : num_latents - 1]), dim=1)

    return iterate(reasoner, question, num_latents, num_iterations, suffix, keep_all, following)
