"""The benchmark `kava bench train`: a training step of each recipe on the same examples.

The recipes' steps are interleaved.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from kava.backbones import layerwise
from kava.bench import flops
from kava.bench.shapes import Lengths, random_reasoner, random_rows
from kava.bench.timing import Piece, spread
from kava.reasoning.batching import Row
from kava.reasoning.reasoner import Reasoner
from kava.recipe.schema import Recipe
from kava.sweeps.cost import token_forwards
from kava.system.memory import peak_memory
from kava.training.sampler import POOL
from kava.training.step import OptimizerStep, micro_batches, optimiser


class Training(OptimizerStep):
    """One training step of a recipe on random weights and examples."""

    @classmethod
    def build(cls, recipe: Recipe, shape: str, lengths: Lengths, device: torch.device) -> Training:
        """Create a random model and the recipe's global batch, at the last stage of its curriculum.

        With `train.group_by_length`, the examples have similar lengths, as in a batch grouped so.

        Raises:
            KavaError: the shape, or the recipe on it, is not possible.
        """
        reasoner = random_reasoner(recipe, shape, device)
        flops.cost(reasoner, training=True)  # raises before anything is timed
        return cls.from_reasoner(reasoner, lengths, recipe.train.autocasts(device.type))

    @classmethod
    def from_reasoner(cls, reasoner: Reasoner, lengths: Lengths, autocast: bool) -> Training:
        """Create a training step of an existing reasoner."""
        settings = reasoner.recipe.train
        layerwise.enable(reasoner.lm, settings.gradient_checkpointing, settings.compile)
        batches = _micro_batches(reasoner.train(), lengths)
        return cls(reasoner, batches, optimiser(reasoner), autocast)

    def renew(self, lengths: Lengths, seed: int) -> None:
        """Replace the examples by others, drawn with this seed."""
        self.micro_batches = _micro_batches(self.reasoner, lengths, seed)

    def record(self) -> dict[str, Any]:
        """Return examples, tokens, token-forwards and FLOPs, as counted and at the least.

        Runs the step twice.
        """
        method, without = (
            self.reasoner.method,
            [_without_counts(batch) for batch in self.micro_batches],
        )
        works = [method.work(batch) for batch in without]
        cost = flops.cost(self.reasoner, training=True)
        known = None not in works  # a method may leave its minimum work unstated
        least = sum(cost.flops(work) for work in works) if known else None
        self.reasoner.train()
        with torch.compiler.set_stance("force_eager"):  # FLOPs in fused kernels are not counted
            counted = flops.count_flops(self.gradients)
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            memory_traffic = token_forwards(self.reasoner, without, float("inf"))
        tokens = sum(
            int(batch[f"{part}_mask"].sum())
            for batch in self.micro_batches
            for part in ("question", "steps", "answer")
        )
        return {
            "rows": sum(batch["question"].shape[0] for batch in without),
            "tokens": tokens,
            "token_forwards": memory_traffic,
            "token_forwards_least": sum(work.columns for work in works) if known else None,
            "flops": counted,
            "flops_least": round(least) if known else None,
            "flops_over_least": round(counted / least, 4) if known else None,
        }

    def peak(self) -> dict[str, Any]:
        """Return the peak memory of a step; a process's peak includes everything else in it."""
        gc.collect()
        with peak_memory(self.device) as peak:
            self.step()
        return asdict(peak)


def _micro_batches(reasoner: Reasoner, lengths: Lengths, seed: int = 0) -> list[dict[str, Any]]:
    """Return the micro-batches of a step on random examples."""
    settings = reasoner.recipe.train
    micro = settings.micro_batch_size or settings.batch_size
    return micro_batches(reasoner, _batch(reasoner, lengths, seed), micro)


def _batch(reasoner: Reasoner, lengths: Lengths, seed: int) -> list[Row]:
    """Return the examples of the recipe's global batch."""
    size, grouped = reasoner.recipe.train.batch_size, reasoner.recipe.train.group_by_length
    rows = random_rows(reasoner, lengths, size * POOL if grouped else size, seed)
    if not grouped:
        return rows
    at = POOL // 2 * size
    return sorted(rows, key=lambda row: row.columns)[at : at + size]


def _without_counts(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "counts"}


def measure(training: Training, seconds: Sequence[float], rate: float) -> dict[str, Any]:
    """Return all measurements of one recipe's step.

    Args:
        rate: the machine's FLOPs per second in large matrix products.
    """
    record, times = training.record(), spread(list(seconds))
    middle = times["median"] / 1000
    return {
        **record,
        "weights": sum(p.numel() for p in training.reasoner.parameters()),
        "weights_trained": sum(
            p.numel() for p in training.reasoner.parameters() if p.requires_grad
        ),
        "micro_batches": len(training.micro_batches),
        "repeats": len(seconds),
        "ms_per_step": times,
        "ms_per_question": round(times["median"] / record["rows"], 4),
        "tokens_per_second": round(record["tokens"] / middle, 1),
        "mfu": round(record["flops_least"] / middle / rate, 4) if record["flops_least"] else None,
        "rate_counted": round(record["flops"] / middle / rate, 4),
        "peak_memory": training.peak(),
    }


def pieces(trainings: Mapping[str, Training]) -> dict[str, Piece]:
    """Return the timed functions: one step of each training."""
    return {name: training.step for name, training in trainings.items()}
