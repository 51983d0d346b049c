"""Latents refined in loops over their own states (LOTUS, arXiv:2606.31779; spec, Methods).

    pass 0      h^0 = f([<bot>, E] | KV(Q))
    t = 1..R    h^t = f(E + P(h^{t-1}) | KV(Q, <bot>))

E is the <latent> embedding at every position; LOTUS itself has no projection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kava.latents._iterate import iterate
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
    """Refine `num_latents` = K x c latents in `num_iterations` = R loops; see `iterate`."""

    def following(states: Tensor) -> Tensor:
        return reasoner.special("latent") + reasoner.project(states[:, -num_latents:])

    return iterate(reasoner, question, num_latents, num_iterations, tail, keep_all, following)
