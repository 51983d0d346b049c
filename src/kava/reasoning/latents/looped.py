"""Looped latents: each latent is refined from its own hidden state (LOTUS, arXiv:2606.31779).

    pass 0      h^0 = f([<bot>, E] | KV(Q))
    t = 1..R    h^t = f(E + P(h^{t-1}) | KV(Q, <bot>))

E is the <latent> embedding at every position. The projection P is optional; LOTUS has none. See
docs/papers.md, LOTUS.
"""

from torch import Tensor

from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents._iterate import iterate
from kava.reasoning.states import AutoIterations, LatentState, Suffix
from kava.shapes import Float


def think(
    reasoner: ReasonerBase,
    question: MaskedCache,
    num_latents: int,
    num_iterations: int | AutoIterations,
    suffix: Suffix,
    keep_all: bool = False,
) -> LatentState:
    """Refine `num_latents` = K x c latents in parallel, in `num_iterations` = R loops after pass 0.

    The arguments are described in `iterate`.
    """

    def next_inputs(
        states: Float[Tensor, "batch columns hidden"],
    ) -> Float[Tensor, "batch latents hidden"]:
        # Not shifted, unlike Jacobi iteration: each latent is refined from its own state. The
        # state of <bot>, the first column of pass 0, is not used.
        return reasoner.special("latent") + reasoner.project(states[:, -num_latents:])

    return iterate(reasoner, question, num_latents, num_iterations, suffix, keep_all, next_inputs)
