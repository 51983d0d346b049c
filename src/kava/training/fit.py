"""Choose how many examples are in memory at once, where the recipe leaves it open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kava.reasoning.batching import Row
from kava.reasoning.reasoner import Reasoner
from kava.system import distributed
from kava.system.text import format_bytes
from kava.training import memory
from kava.training.arguments import rows_at_once
from kava.training.sampler import EpochOrder, widest
from kava.training.step import micro_batches

#: Share of the free memory that a step may take by its count. The rest is for fragments of the
#: allocator and workspaces of kernels, which are not counted (ours; not measured yet).
SHARE = 0.9


@dataclass(frozen=True)
class Fit:
    """The examples at once of each process, and the memory that its step takes.

    rows: examples in a micro-batch.
    needed: counted bytes of gradients, optimizer states and activations at the peak.
    free: bytes that are free on the device.
    """

    rows: int
    needed: float
    free: int

    def describe(self, batch_size: int) -> str:
        """Say in one line what was chosen and why."""
        return (
            f"train.micro_batch_size is null: {self.rows} of {batch_size} rows at once; a step "
            f"takes {format_bytes(self.needed)} beside the weights by count, of "
            f"{format_bytes(self.free)} of free memory"
        )


def free_device_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can still allocate on its GPU; None if it has none.

    On a CPU, all examples of a batch are in memory at once, as the recipe says: what is free there
    changes from minute to minute, and a training would not be the same again.
    """
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def choose_rows(reasoner: Reasoner, rows: Sequence[Row], free: int, processes: int = 1) -> Fit:
    """Return the most examples at once whose step fits, by the count of its widest micro-batch.

    Gradients are accumulated to the recipe's batch size, which is held. If not even one example
    fits by the count, one is tried. With FSDP2, weights and gradients are counted whole.

    Args:
        rows: the training examples.
        free: bytes that are free on the device beside the weights.
        processes: number of processes that share a batch.
    """
    batch = reasoner.recipe.train.batch_size
    sizes = [n for n in range(batch // processes, 0, -1) if batch % (n * processes) == 0]
    fits = (Fit(size, _needed(reasoner, rows, size, processes), free) for size in sizes)
    return next(fit for fit in fits if fit.rows == 1 or fit.needed <= SHARE * free)


def fit_or_keep(
    reasoner: Reasoner, rows: Sequence[Row], earlier: int | None
) -> tuple[int, Fit | None]:
    """Return the examples at once of each process, and how they were chosen if they were.

    All processes choose alike, by the one that has the least free memory.

    Args:
        earlier: examples at once before the checkpoint of a resumed training, which are kept.
    """
    settings, processes = reasoner.recipe.train, distributed.world_size()
    given = rows_at_once(settings, processes)
    free = free_device_memory(reasoner.device)
    if settings.micro_batch_size or free is None:
        return given, None
    if earlier and settings.batch_size % (earlier * processes) == 0:
        return earlier, None
    fit = choose_rows(reasoner, rows, min(distributed.gather(free)), processes)
    return fit.rows, fit


def _needed(reasoner: Reasoner, rows: Sequence[Row], size: int, processes: int) -> float:
    recipe, train = reasoner.recipe, reasoner.recipe.train
    sizes = [(len(row.question), len(row.steps), len(row.answer)) for row in rows]
    lengths = [row.columns for row in rows] if train.group_by_length else None
    order = EpochOrder(len(rows), recipe.seed, size * processes, lengths, train.batch_size)
    epochs = math.ceil(train.total_steps(len(rows)) / train.steps_per_epoch(len(rows)))
    chosen = [rows[i] for i in widest(sizes, order, size, epochs)]
    # A second micro-batch runs while gradients are held.
    chosen *= 2 if train.batch_size > size * processes else 1
    autocast = train.autocasts("cuda")
    stages = (0.0, math.inf) if reasoner.method.stage(0) is not None else (math.inf,)
    counted = [
        memory.count(reasoner, micro_batches(reasoner, chosen, size, epoch), autocast, on_gpu=True)
        for epoch in stages
    ]
    buckets = counted[0].gradients * (processes > 1)  # of DDP
    return max(one.total - one.weights for one in counted) + buckets
