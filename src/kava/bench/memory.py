"""Count the memory of a training step on tensors without values (`kava bench memory`).

The recipe's own step runs on fake tensors (`torch._subclasses.fake_tensor`), which have shapes,
storages and an autograd graph, but no values. Every storage that a torch operation creates is
counted while it lives, so the peak follows from the code itself, without any formula. Not included:
fragmentation of the allocator, workspaces of kernels, the half gigabyte of the CUDA context, and
the buckets of DDP.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kava.backbones import attention, loading
from kava.bench.shapes import Lengths, reasoner_of_sizes
from kava.bench.train import Training, optimiser
from kava.recipe.schema import Recipe


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


def count(recipe: Recipe, shape: str, lengths: Lengths, rows: int, device: str) -> Memory:
    """Return the peak memory of a training step with `rows` examples per micro-batch.

    Layers are counted uncompiled, whatever `train.compile` says.

    Args:
        device: the device it would run on, `cpu` or `cuda`; it decides the precision and the
            attention kernel. CPU kernels are used in between. Their CUDA counterparts keep the same
            tensors. Dropout masks are counted with one byte per element, as CUDA's kernel keeps
            them.

    Raises:
        KavaError: the shape, or the recipe on it, is not possible.
    """
    more = recipe.train.batch_size > rows  # the second micro-batch runs while gradients are held
    train = {"batch_size": 2 * rows if more else rows, "micro_batch_size": rows, "compile": False}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
    reasoner = reasoner_of_sizes(recipe, shape, loading.choose_dtype(recipe, device))
    training = Training.from_reasoner(reasoner, lengths, recipe.train.autocasts(device))
    with ExitStack() as stack:
        if device == "cuda":
            stack.enter_context(attention.allocate_as_on_gpu())
            stack.enter_context(_dropout_as_on_gpus())
        return _count_step(training)


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


def _count_step(training: Training) -> Memory:
    training, fake = _on_fake_tensors(training)
    reasoner, living = training.reasoner, LiveBytes()
    with fake, living:
        for tensor in (*reasoner.parameters(), *reasoner.buffers()):
            living.add(tensor)
        weights = living.current
        trained = [weight for weight in reasoner.parameters() if weight.requires_grad]
        for weight in trained:
            weight.grad = torch.zeros_like(weight)
        gradients = living.current - weights
        training.optimiser.step()
        states = living.current - weights - gradients
        training.optimiser.zero_grad()
        for batch in training.micro_batches:
            for tensor in tree_leaves(batch):
                if isinstance(tensor, Tensor):
                    living.add(tensor)
        living.peak = living.current
        training.step()
        return Memory(weights, gradients, states, living.peak - weights - gradients - states)


def _on_fake_tensors(training: Training) -> tuple[Training, FakeTensorMode]:
    """Return a copy of the step on fake tensors; the reasoner is changed in place."""
    fake, twins = FakeTensorMode(), {}

    def fake_copy(tensor: Tensor | None) -> Tensor | None:
        if tensor is not None and id(tensor) not in twins:
            made = fake.from_tensor(tensor.detach())
            is_weight = isinstance(tensor, nn.Parameter)
            twins[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_weight else made
        return None if tensor is None else twins[id(tensor)]

    for module in training.reasoner.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake_copy(tensor) for name, tensor in tensors.items()})
    batches = tree_map_only(Tensor, fake_copy, training.micro_batches)
    with fake:
        adam = optimiser(training.reasoner)
    return replace(training, micro_batches=batches, optimiser=adam), fake
