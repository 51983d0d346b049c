"""Weights that FSDP2 splits over processes: put together to be written, and to answer.

Everything here is called by all processes. Where nothing is split it does nothing, so that its
callers need not ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def gather_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Every weight by name, on the main process (empty on the others); None if none is split."""
    if not _parts(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def unshard(value: Any) -> Any:
    """A tensor that may be split, put together; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def gather_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser as one process alone would have it; on every process."""

    found = optimizer.state_dict()
    state = {
        number: {name: unshard(value) for name, value in one.items()}
        for number, one in found["state"].items()
    }
    return {**found, "state": state}


def shard_optimizer(optimizer: torch.optim.Optimizer, whole: dict[str, Any]) -> dict[str, Any]:
    """The reverse: such a state, each tensor split as its weight is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def parted(value: Any, weight: Tensor) -> Any:
        if not isinstance(weight, DTensor) or not torch.is_tensor(value) or not value.dim():
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)

    state = {
        number: {name: parted(value, weights[number]) for name, value in one.items()}
        for number, one in whole["state"].items()
    }
    return {**whole, "state": state}


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, each process holds all weights: it answers questions without the others."""
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def _parts(model: nn.Module) -> list[Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
