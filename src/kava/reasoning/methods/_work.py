"""What a method's equations ask of the backbone, at the least: `kava bench` compares with it.

Written from the equations and not from the code that runs, so that a pass that is made twice, a
logit that nobody reads or a pad shows as a ratio above 1. A pass is one time through all layers:
that the last layer's output is not read at every column (the question's, say) is not counted as a
saving, since no backbone of transformers can leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One pass: `new` real columns of each row after `past` real ones, [B] each."""

    new: Tensor
    past: Tensor

    @property
    def pairs(self) -> Tensor:
        """Pairs of a query and a key that attention sees, [B]: causal, itself included."""
        return self.new * self.past + self.new * (self.new + 1) // 2


@dataclass(frozen=True)
class Work:
    """All passes; `labels`: positions whose logits are read; `projected`: latents through P."""

    calls: Sequence[Call]
    labels: int
    projected: int = 0

    @property
    def columns(self) -> int:
        """Token-forwards: real columns, summed over passes and rows."""
        return sum(int(call.new.sum()) for call in self.calls)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key, summed over passes and rows, of one layer."""
        return sum(int(call.pairs.sum()) for call in self.calls)


def lengths(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Real columns of question, steps and answer, [B] each."""
    question, steps, answer = (batch[f"{part}_mask"] for part in ("question", "steps", "answer"))
    return question.sum(1), steps.sum(1), answer.sum(1)


def chain(*parts: Tensor | int, after: Tensor | None = None) -> list[Call]:
    """Passes one after the other, each continuing from all before it.

    Args:
        after: real columns before the first, [B]; none if not given.
    """
    calls: list[Call] = []
    for part in parts:
        like = torch.as_tensor(part) if after is None else after
        new = torch.as_tensor(part, device=like.device).expand_as(like)
        calls.append(Call(new, torch.zeros_like(new) if after is None else after))
        after = calls[-1].past + new
    return calls


def refined(question: Tensor, latents: int, iterations: int, suffix: Tensor) -> list[Call]:
    """Latents all at once: pass 0 with <bot>, T passes after it, the last with the suffix."""
    if iterations == 0:
        return chain(1 + latents + suffix, after=question)
    again = Call(torch.full_like(question, latents), question + 1)
    first, last = chain(1 + latents, after=question), Call(latents + suffix, question + 1)
    return [*first, *[again] * (iterations - 1), last]


def one_by_one(question: Tensor, latents: Tensor | int, suffix: Tensor) -> list[Call]:
    """<bot> and each latent in its own pass, the suffix in the last; `latents`: [B] or a number."""
    count = torch.as_tensor(latents, device=question.device).expand_as(question)
    calls = chain(1, after=question)
    for i in range(1, int(count.max()) + 1):
        calls.append(Call((count >= i).long(), question + i))
    return [*calls, Call(suffix, question + 1 + count)]
