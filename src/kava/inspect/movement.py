"""How far latents move from one iteration to the next."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.inspect._numbers import Unavailable, numbers


@dataclass(frozen=True)
class Movement:
    """The change of the inputs X^t of pass t to X^{t+1}, for t = 0 .. T - 1 and each latent.

    distance: |X^{t+1} - X^t| / |X^t|, [T][M].
    cosine: cosine similarity of X^{t+1} and X^t, [T][M].
    mean_distance, mean_cosine: means over the latents, [T].
    """

    distance: list[list[float]]
    cosine: list[list[float]]
    mean_distance: list[float]
    mean_cosine: list[float]


def movement(inputs: list[Tensor]) -> Movement | Unavailable:
    """Compute the movement from the latents' inputs of every pass.

    X^0 is the <latent> embedding, the same at every position.

    Args:
        inputs: [1, M, hidden_size] for each pass.
    """
    if len(inputs) < 2:
        return Unavailable("there is a single pass, so no iteration to move in")
    before, after = torch.cat(inputs[:-1]).float(), torch.cat(inputs[1:]).float()
    length = torch.linalg.vector_norm(before, dim=-1).clamp(min=1e-12)
    distance = torch.linalg.vector_norm(after - before, dim=-1) / length
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
    means = numbers(distance.mean(1)), numbers(cosine.mean(1))
    return Movement(numbers(distance), numbers(cosine), *means)
