"""Gather weights and optimizer states that FSDP2 shards over processes, and shard them again.

All processes must call these functions together. If nothing is sharded they do nothing, so callers
need not check.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def loading_everywhere() -> Iterator[None]:
    """Inside the block, transformers loads weights on every process.

    With `cpu_ram_efficient_loading`, which `accelerate launch --use_fsdp` sets, only the main
    process of a machine would have them before the training. But each process checks its backbone
    and draws new embeddings on the scale of the others.
    """
    wanted = os.environ.pop(_ONE_LOADS, None)
    try:
        yield
    finally:
        if wanted is not None:
            os.environ[_ONE_LOADS] = wanted


_ONE_LOADS = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def keep_precision(plugin: Any) -> None:
    """Let FSDP2 hold, gather and reduce weights and gradients in their own dtype.

    With bf16, accelerate would also reduce gradients in bf16 and run norms and the residual stream
    in bf16. Here the trainer's autocast alone decides the precision of each operation, as with a
    single process.

    Args:
        plugin: accelerate's plugin for FSDP; None without FSDP.
    """
    if plugin is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def gather_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Return all weights by name on the main process (empty on the others); None if not sharded.

    A tied weight is there once, under its first name, as in a checkpoint of a single process.
    """
    if not _parts(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = names - {name for name, _ in model.named_parameters()}
    return {name: weight for name, weight in weights.items() if name not in tied}


def unshard(value: Any) -> Any:
    """Return the full tensor of a sharded tensor; return anything else unchanged."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def gather_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer state that a single process would have, on every process."""

    found = optimizer.state_dict()
    state = {
        number: {name: unshard(value) for name, value in one.items()}
        for number, one in found["state"].items()
    }
    return {**found, "state": state}


def shard_optimizer(optimizer: torch.optim.Optimizer, full_state: dict[str, Any]) -> dict[str, Any]:
    """Invert `gather_optimizer`: shard each tensor of a full state like its weight."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def shard(value: Any, weight: Tensor) -> Any:
        if not isinstance(weight, DTensor) or not torch.is_tensor(value) or not value.dim():
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)

    state = {
        number: {name: shard(value, weights[number]) for name, value in one.items()}
        for number, one in full_state["state"].items()
    }
    return {**full_state, "state": state}


@contextmanager
def full_weights(model: nn.Module) -> Iterator[None]:
    """Inside the block, each process holds all weights and can answer questions on its own."""
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
