"""Count the memory of a training step on tensors without values, and choose the rows that fit.

The recipe's own step runs on fake tensors (`torch._subclasses.fake_tensor`), which have shapes,
storages and an autograd graph, but no values. Every storage that a torch operation creates is
counted while it lives, so the peak follows from the code itself, without any formula. Not included:
fragmentation of the allocator, workspaces of kernels, the half gigabyte of the CUDA context, and
the buckets of DDP.
"""

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel

from kava.backbones import attention, layerwise
from kava.reasoning.reasoner import Reasoner
from kava.training.step import OptimizerStep, optimiser


@dataclass(frozen=True)
class Memory:
    """Memory at the peak of a training step, in bytes."""

    weights: float
    gradients: float
    optimiser: float
    activations: float

    @property
    def total(self) -> float:
        """Return the total number of bytes."""
        return self.weights + self.gradients + self.optimiser + self.activations


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that counts the bytes of storages, from their creation until they are freed.

    current: bytes at present.
    peak: the maximum so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._live: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor created before this mode was active, unless its storage is counted."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live.add(key)
        weakref.finalize(storage, self._drop, key, size)
        self.current += size
        self.peak = max(self.peak, self.current)

    def _drop(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.current -= size

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = call(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self.add(value)
        return made


def count(
    reasoner: Reasoner, micro_batches: Sequence[dict[str, Any]], autocast: bool, on_gpu: bool
) -> Memory:
    """Return the peak memory of a step on these micro-batches; the reasoner is not changed.

    Layers are counted uncompiled, whatever `train.compile` says.

    Args:
        micro_batches: see `kava.training.step.micro_batches`.
        autocast: whether it computes in bf16 autocast.
        on_gpu: whether to count the attention kernel and the dropout of GPUs. CPU kernels are used
            in between. Their CUDA counterparts keep the same tensors. Dropout masks are counted
            with one byte per element, as CUDA's kernel keeps them.
    """
    with ExitStack() as stack:
        if on_gpu:
            stack.enter_context(attention.allocate_as_on_gpu())
            stack.enter_context(_dropout_as_on_gpus())
        return _count_step(*_on_fake_tensors(reasoner, micro_batches, autocast))


@contextmanager
def _dropout_as_on_gpus() -> Iterator[None]:
    """Inside the `with` block, dropout keeps a mask of bytes, as on GPUs.

    On CPUs, it keeps a mask in the dtype of its input.
    """
    theirs = torch.nn.functional.dropout

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
        return torch.native_dropout(input, p, training)[0] if training and p else input

    torch.nn.functional.dropout = dropout
    try:
        yield
    finally:
        torch.nn.functional.dropout = theirs


def _count_step(step: OptimizerStep, fake: FakeTensorMode) -> Memory:
    reasoner, living = step.reasoner, LiveBytes()
    with fake, living:
        for tensor in (*reasoner.parameters(), *reasoner.buffers()):
            living.add(tensor)
        weights = living.current
        trained = [weight for weight in reasoner.parameters() if weight.requires_grad]
        for weight in trained:
            weight.grad = torch.zeros_like(weight)
        gradients = living.current - weights
        step.optimiser.step()
        states = living.current - weights - gradients
        step.optimiser.zero_grad()
        for tensor in tree_leaves(step.micro_batches):
            if isinstance(tensor, Tensor):
                living.add(tensor)
        living.peak = living.current
        step.step()
        return Memory(weights, gradients, states, living.peak - weights - gradients - states)


def _on_fake_tensors(
    reasoner: Reasoner, micro_batches: Sequence[dict[str, Any]], autocast: bool
) -> tuple[OptimizerStep, FakeTensorMode]:
    """Return a step of a copy of the reasoner, whose tensors are fake ones on the CPU."""
    fake, twins = FakeTensorMode(), {}

    def fake_copy(tensor: Tensor) -> Tensor:
        if id(tensor) not in twins:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_weight = isinstance(tensor, nn.Parameter)
            twins[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_weight else made
        return twins[id(tensor)]

    with fake:
        for tensor in (*reasoner.parameters(), *reasoner.buffers()):
            fake_copy(tensor)
        batches = tree_map_only(Tensor, fake_copy, list(micro_batches))
        copied = copy.deepcopy(reasoner, dict(twins)).train()  # takes tensors from the twins
        copied.prepare_training()
        train = copied.recipe.train
        for model in (copied.lm, *copied.training_modules.values()):
            if isinstance(model, PreTrainedModel):
                layerwise.enable(model, train.gradient_checkpointing, compile=False)
        return OptimizerStep(copied, batches, optimiser(copied), autocast), fake
