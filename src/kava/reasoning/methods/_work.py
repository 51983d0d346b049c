"""Minimum work of a method: the forward passes that its equations require of the backbone.

`kava bench` compares the actual work with it. The minimum is derived from the equations and not
from the code that runs, so a repeated forward pass, an unused logit or padding shows as a ratio
above 1. A pass always goes through all layers. The last layer's output is not needed at every
column (for example those of the question), but this is not counted as a saving, because no backbone
of transformers can skip it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass over a batch.

    Args:
        new_tokens: [batch], number of new real tokens of each example.
        past_tokens: [batch], number of real tokens before them.
    """

    new_tokens: Tensor
    past_tokens: Tensor

    @property
    def pairs(self) -> Tensor:
        """Query-key pairs of causal attention, each token attending to itself too; [batch]."""
        return self.new_tokens * self.past_tokens + self.new_tokens * (self.new_tokens + 1) // 2


@dataclass(frozen=True)
class Work:
    """Total work of a step or of an answer.

    Args:
        forward_passes: all of them, in order.
        labels: number of positions whose logits are needed.
        num_projected: number of latent states that pass through the projection P.
    """

    forward_passes: Sequence[ForwardPass]
    labels: int
    num_projected: int = 0

    @property
    def columns(self) -> int:
        """Total number of real tokens over all forward passes and examples."""
        return sum(int(call.new_tokens.sum()) for call in self.forward_passes)

    @property
    def pairs(self) -> int:
        """Total number of query-key pairs of one layer, over all forward passes and examples."""
        return sum(int(call.pairs.sum()) for call in self.forward_passes)


def lengths(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of real tokens of question, chain of thought and answer, [batch] each."""
    question, steps, answer = (batch[f"{part}_mask"] for part in ("question", "steps", "answer"))
    return question.sum(1), steps.sum(1), answer.sum(1)


def consecutive_passes(*parts: Tensor | int, after: Tensor | None = None) -> list[ForwardPass]:
    """Return consecutive forward passes, each of which continues from all passes before it.

    Args:
        parts: number of new tokens of each pass, [batch] or a single number.
        after: [batch], number of real tokens before the first pass; 0 by default.
    """
    calls: list[ForwardPass] = []
    for part in parts:
        like = torch.as_tensor(part) if after is None else after
        new = torch.as_tensor(part, device=like.device).expand_as(like)
        calls.append(ForwardPass(new, torch.zeros_like(new) if after is None else after))
        after = calls[-1].past_tokens + new
    return calls


def parallel_passes(
    question: Tensor, latents: int, iterations: int, suffix: Tensor
) -> list[ForwardPass]:
    """Return the forward passes of latents that are refined in parallel.

    These are pass 0 with <bot> and T passes after it; the last pass includes the suffix.

    Args:
        question: [batch], lengths of the questions.
        latents: number of latents M.
        iterations: T.
        suffix: [batch], lengths of the suffixes.
    """
    if iterations == 0:
        return consecutive_passes(1 + latents + suffix, after=question)
    first = consecutive_passes(1 + latents, after=question)
    iteration = ForwardPass(torch.full_like(question, latents), question + 1)
    last = ForwardPass(latents + suffix, question + 1)
    return [*first, *[iteration] * (iterations - 1), last]


def sequential_passes(question: Tensor, latents: Tensor | int, suffix: Tensor) -> list[ForwardPass]:
    """Return the forward passes of latents that are generated one at a time.

    <bot> and each latent have a pass of their own; the suffix is counted after the last latent.

    Args:
        question: [batch], lengths of the questions.
        latents: number of latents, [batch] or a single number.
        suffix: [batch], lengths of the suffixes.
    """
    count = torch.as_tensor(latents, device=question.device).expand_as(question)
    calls = consecutive_passes(1, after=question)
    for i in range(1, int(count.max()) + 1):
        calls.append(ForwardPass((count >= i).long(), question + i))
    return [*calls, ForwardPass(suffix, question + 1 + count)]
