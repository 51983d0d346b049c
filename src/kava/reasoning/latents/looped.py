"""Latents refined in loops over their own states (LOTUS, arXiv:2606.31779; spec, Methods).

    pass 0      h^0 = f([<bot>, E] | KV(Q))
    t = 1..R    h^t = f(E + P(h^{t-1}) | KV(Q, <bot>))

E is the <latent> embedding at every position; LOTUS itself has no projection.
"""

from __future__ import annotations

from torch import Tensor

from kava.backbones.thought import Thought
from kava.reasoning.interface import ReasonerProtocol
from kava.reasoning.latents._iterate import iterate
from kava.reasoning.states import LatentState, Suffix
from kava.shapes import Float


def think(
    reasoner: ReasonerProtocol,
    question: Thought,
    num_latents: int,
    num_iterations: int,
    suffix: Suffix,
    keep_all: bool = False,
) -> LatentState:
    """Refine `num_latents` = K x c latents in `num_iterations` = R loops; see `iterate`."""

    def following(
        states: Float[Tensor, "batch columns hidden"],
    ) -> Float[Tensor, "batch latents hidden"]:
        return reasoner.special("latent") + reasoner.project(states[:, -num_latents:])

    return iterate(reasoner, question, num_latents, num_iterations, suffix, keep_all, following)
