"""One optimizer step that can be repeated, without the Trainer around it."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from kava.reasoning import batching
from kava.reasoning.batching import Row
from kava.reasoning.reasoner import Reasoner


@dataclass
class OptimizerStep:
    """An optimizer step on some micro-batches: forward, backward, clipping, AdamW."""

    reasoner: Reasoner
    micro_batches: list[dict[str, Any]]
    optimiser: torch.optim.Optimizer
    autocast: bool

    @property
    def device(self) -> torch.device:
        """The device on which the step runs."""
        return self.reasoner.device

    def step(self) -> None:
        """Run one optimizer step."""
        self.gradients()
        trained = (weight for group in self.optimiser.param_groups for weight in group["params"])
        torch.nn.utils.clip_grad_norm_(trained, self.reasoner.recipe.train.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def gradients(self) -> None:
        """Run the forward and backward pass of every micro-batch."""
        context = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else None
        for batch in self.micro_batches:
            with context or nullcontext():
                loss = self.reasoner(**batch)["loss"]
            loss.backward()


def optimiser(reasoner: Reasoner) -> torch.optim.AdamW:
    """Return the recipe's optimizer for all trained weights."""
    trained = [weight for weight in reasoner.parameters() if weight.requires_grad]
    settings = reasoner.recipe.train
    return torch.optim.AdamW(
        trained,
        settings.learning_rate,
        (0.9, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def micro_batches(
    reasoner: Reasoner, rows: Sequence[Row], size: int, epoch: float = math.inf
) -> list[dict[str, Any]]:
    """Return the micro-batches of a step on the reasoner's device, with their denominators.

    Args:
        size: number of examples in a micro-batch.
        epoch: point of the method's curriculum; by default, after its last stage.
    """
    pad = reasoner.tokenizer.pad_token_id
    parts = (batching.collate(rows[at : at + size], pad) for at in range(0, len(rows), size))
    device = reasoner.device
    batches = [reasoner.apply_stage(batching.to_device(part, device), epoch) for part in parts]
    found = [reasoner.method.counts(batch) for batch in batches]
    counts = {name: sum(part[name] for part in found) for name in found[0]}
    return [{**batch, "counts": counts} for batch in batches]
