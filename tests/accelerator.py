"""An accelerator where there is none: a device of its own, for which the CPU computes.

Tensors on it and on the CPU do not mix, as they do not on a GPU: an operation that gets both
raises, but for copies and scalars. What makes the host wait for a GPU is counted, with the line of
kava that asked for it. Numbers are the CPU's, so that results can be compared; only attention goes
by other kernels.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import kava

NAME = "privateuseone"  # what torch calls a device of somebody else
DEVICE = torch.device(NAME, 0)
_SOURCE = str(Path(kava.__file__).parent)
aten = torch.ops.aten

#: Lines that made the host wait, `operation, file:line`, and how often; copies from the host.
waits: Counter[str] = Counter()
copies: Counter[str] = Counter()
#: Operations that were started on the device.
started: Counter[str] = Counter()

_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "unique_dim"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPYING = {"copy_", "_to_copy"}
#: Factories that torch does not take apart into an empty tensor and an operation on it.
_FACTORIES = (
    aten.empty.memory_format, aten.empty_strided.default, aten.arange.default, aten.arange.start,
    aten.arange.start_step, aten.eye.default, aten.eye.m, aten.linspace.default,
    aten.scalar_tensor.default, aten.tril_indices.default, aten.triu_indices.default,
)  # fmt: skip


class Remote(torch.Tensor):
    """A tensor on the device; `here` is the same on the CPU."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor, requires_grad: bool = False) -> Remote:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, layout=here.layout, device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip
        made.here = here
        return made

    def tolist(self) -> Any:
        _note(waits, "tolist")
        return self.here.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.here.untyped_storage()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def __format__(self, how: str) -> str:
        return format(self.item(), how)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made = Remote(self.here.detach().clone())
        is_weight = isinstance(self, torch.nn.Parameter)
        memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if is_weight else made
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"Remote({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(call, args, kwargs or {})


def _run(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = call._schema.name.removeprefix("aten::")
    started[name] += 1
    leaves = tree_leaves((args, kwargs))
    _check_together(name, leaves)
    if name in _WAITING or (name in _INDEXING and _by_mask(args[1])):
        _note(waits, name)
    given, named = tree_map_only(Remote, lambda tensor: tensor.here, (args, kwargs))
    if name == "copy_" and not isinstance(args[0], Remote):
        _note(waits, name)
        args[0].copy_(given[1])
        return args[0]
    if name == "copy_" and not isinstance(args[1], Remote):
        _note(copies, name)
    if (target := named.get("device")) is not None:
        if torch.device(target).type != NAME:
            _note(waits, name)
            return call(*given, **named)
        named["device"] = "cpu"
    return _back(call, args, call(*given, **named))


def _check_together(name: str, leaves: list[Any]) -> None:
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"Expected a generator of '{NAME}', not of the CPU: {name}")
    others = [t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, Remote)]
    if name not in _COPYING and any(tensor.dim() for tensor in others):
        shapes = [tuple(tensor.shape) for tensor in others]
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {name} got {shapes} of the CPU"
        )


def _by_mask(indices: list[torch.Tensor | None]) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _back(call: Any, args: tuple[Any, ...], made: Any) -> Any:
    """What an operation made, on the device; what it changed in place is what it was given."""
    changed = {}
    for argument, value in zip(call._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed |= {id(t.here): t for t in tree_leaves(value) if isinstance(t, Remote)}
    if any(tensor.shape != tensor.here.shape for tensor in changed.values()):
        raise NotImplementedError(f"{call}: changes a tensor's size in place")
    return tree_map_only(
        torch.Tensor, lambda t: changed[id(t)] if id(t) in changed else Remote(t), made
    )


def _note(counter: Counter[str], what: str) -> None:
    lines = [f for f in traceback.extract_stack() if f.filename.startswith(_SOURCE)]
    where = f"{Path(lines[-1].filename).name}: {lines[-1].line}" if lines else "torch"
    counter[f"{what}, {where}"] += 1


_registered: torch.library.Library | None = None
_present = False  # whether anybody who asks torch is to find the device


class _Module:
    """What torch has of a kind of device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return _present

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]


def _register() -> None:
    """Once in a process; torch cannot take it back."""
    global _registered
    if _registered is not None:
        return
    from torch.utils import backend_registration as registration

    class Hook(registration._DummyPrivateUse1Hook):
        def is_available(self) -> bool:
            return _present

    registration._setup_privateuseone_for_python_backend(NAME, _Module(), Hook())
    _registered = torch.library.Library("aten", "IMPL")
    for operation in _FACTORIES:
        _registered.impl(operation, _factory(operation), "PrivateUse1")
    _registered.impl(aten._copy_from.default, _copy_from, "PrivateUse1")
    # Attention by plain operations.
    _registered.impl(aten._fused_sdp_choice.default, lambda *_, **__: 0, "PrivateUse1")


def _factory(operation: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Remote:
        kept = {name: value for name, value in kwargs.items() if value is not None}
        return Remote(operation(*args, **{**kept, "device": "cpu", "pin_memory": False}))

    return make


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    """Count a copy that torch makes below its dispatch to Python (`torch.tensor(..., device=)`)."""
    if source.numel():
        _note(copies, "tensor")
    target.here.copy_(source)
    return target


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """The device, with nothing counted yet.

    Modules that are moved there keep their parameters' identity, so that tied ones stay tied, and
    gradients are made in this thread: torch would end a thread of the device's by aborting.
    """
    global _present
    _register()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    _present = True
    try:
        with torch.autograd.set_multithreading_enabled(False):
            forget()
            yield DEVICE
    finally:
        _present = False
        torch.__future__.set_swap_module_params_on_conversion(swapped)


def forget() -> None:
    """Count anew."""
    for counter in (waits, copies, started):
        counter.clear()
