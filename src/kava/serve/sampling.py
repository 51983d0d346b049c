"""Sampling of tokens, for rows that share a batch and nothing else."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper

from kava.serve.jobs import Sampling


class BatchSampler(LogitsProcessor):
    """Logits processor that samples a token for each row with a temperature above 0.

    Each row has a generator of its own, so that what it draws depends on its seed and not on the
    rest of the batch. torch's default generator is shared by the whole process, so seeding it would
    affect all other users. There is no top_k: clients of the OpenAI interface do not ask for
    transformers' default of 50.

    Args:
        rows: how the tokens of each row are chosen.
    """

    def __init__(self, rows: Sequence[Sampling], device: torch.device):
        sampled = {row: one for row, one in enumerate(rows) if one.temperature}
        self.rows = torch.tensor([*sampled], dtype=torch.long, device=device)
        temperatures = [one.temperature for one in sampled.values()]
        self.temperatures = torch.tensor(temperatures, device=device)[:, None]
        self.generators = [_generator(one.seed, device) for one in sampled.values()]
        self.top_p = {
            i: TopPLogitsWarper(one.top_p)
            for i, one in enumerate(sampled.values())
            if one.top_p < 1
        }

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits [batch, vocabulary] with which the largest one is the chosen token.

        In rows that are sampled, it is 0 for the sampled token and minus infinity elsewhere. Other
        rows are unchanged.
        """
        logits = scores[self.rows] / self.temperatures
        for i, warper in self.top_p.items():
            logits[i : i + 1] = warper(input_ids, logits[i : i + 1])
        tokens = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(logits.softmax(-1), self.generators, strict=True)
        ]
        chosen = torch.full_like(logits, -math.inf).scatter(1, torch.stack(tokens), 0.0)
        return scores.index_copy(0, self.rows, chosen)


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
