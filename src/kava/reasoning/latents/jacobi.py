"""Jacobi iteration: all latents are refined in parallel (PCCoT, arXiv:2506.18582).

pass 0      h^0 = f([<bot>, <latent> x M] | KV(Q));  X^1_i = P(h^0_{i-1})
t = 1..T    h^t = f(X^t | KV(Q, <bot>));             X^{t+1} = [X^1_1, P(h^t_1) ...]

With `latent_update: residual` (our addition), these are added to X^t in place of replacing it; X^0
are the <latent> embeddings.

See docs/papers.md, Latents.
"""

import torch
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
    """Refine `num_latents` latents in parallel, in `num_iterations` passes after pass 0.

    The arguments are described in `iterate`. With `AutoIterations`, each example has its own number
    of iterations, and `keep_all` has no effect.
    """
    residual = reasoner.recipe.latent_update == "residual"
    inputs = reasoner.special("latent")
    first: Float[Tensor, "batch 1 hidden"] | None = None

    def next_inputs(
        states: Float[Tensor, "batch columns hidden"],
    ) -> Float[Tensor, "batch latents hidden"]:
        nonlocal first, inputs
        projected = reasoner.project(states)
        # Shifted by one column, as in sequential generation: the input of latent i is the
        # projected state of the column before it.
        if first is None:  # pass 0, where <bot> is the first column
            first = projected[:, :1]
            update = projected[:, :num_latents]
        else:
            # The first latent follows <bot>, which is not computed again: X^1_1 is final.
            update = torch.cat((first, projected[:, : num_latents - 1]), dim=1)
        inputs = inputs + update if residual else update
        return inputs

    return iterate(reasoner, question, num_latents, num_iterations, suffix, keep_all, next_inputs)
