"""Run in several processes, started by `torchrun`, `accelerate launch` or SLURM jobs.

The launcher sets the number of processes in the environment. accelerate does the splitting,
gathering and synchronizing. This module adds that an error on one rank ends all processes and is
reported once.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from kava.errors import KavaError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
#: Commands that share their work among processes; all others run as a single process.
COMMANDS = ("train", "eval", "pretrain")
_PATIENCE = timedelta(seconds=10)
_HEAD_START = timedelta(seconds=2)
#: How long the processes wait for one that downloads, compares rows with test questions or measures
#: latencies alone. NCCL's own limit is ten minutes. A process that ends is noticed by the launcher.
_WORK_OF_ONE = timedelta(hours=4)


def world_size() -> int:
    """Return the number of processes that the launcher started; 1 without a launcher."""
    launched = "LOCAL_RANK" in os.environ
    return int(os.environ.get("WORLD_SIZE", 1)) if launched else 1


def rank() -> int:
    """Return the rank of this process, counted from 0."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the main process (rank 0), which writes files and prints."""
    return rank() == 0


def check_command(words: list[str]) -> None:
    """Reject several processes for a command that would repeat its work in each of them.

    Also reject a single process if several were requested: on CPUs, `accelerate launch
    --num_processes 2` prepares for two and starts one (accelerate 1.15).

    Raises:
        KavaError: in these cases. The message names the commands that can use several processes, or
            says how to start several.
    """
    command = command_of(words)
    if command in COMMANDS and "LOCAL_RANK" not in os.environ and _set_by_accelerate("MASTER_PORT"):
        raise KavaError(
            "accelerate launch should have started several processes (MASTER_PORT is set), but "
            "started only one; on CPUs, replace --cpu with --multi_gpu, or use torchrun",
            code="system.one-started-of-several",
            key="MASTER_PORT",
        )
    if world_size() > 1 and command not in (*COMMANDS, None):
        raise KavaError(
            f"'{command}' runs as a single process, not as {world_size()}; torchrun and accelerate "
            f"launch can only be used with {', '.join(COMMANDS)}",
            code="system.one-process-only",
            key=command,
        )


def command_of(words: list[str]) -> str | None:
    """Return the command among the words of a command line, or None if there is none."""
    return next((word for word in words if not word.startswith("-")), None)


def _set_by_accelerate(name: str) -> bool:
    """Whether `accelerate launch` set an environment variable, rather than passed it on.

    The environment of the launcher itself does not contain the variables it sets for its processes.
    """
    mark = "ACCELERATE_MIXED_PRECISION"
    if not {mark, name} <= os.environ.keys():
        return False
    import psutil

    try:
        above = (process.environ() for process in psutil.Process().parents())
        launcher = next((environment for environment in above if mark not in environment), {})
    except psutil.Error:  # the process belongs to another user, or has ended
        launcher = {}
    return launcher.get(name) != os.environ[name]


def check_sharding() -> None:
    """Reject a way of sharding the weights that the launcher requests and kava does not support.

    Raises:
        KavaError: for DeepSpeed; for version 1 of FSDP; and for FSDP on the CPU, where accelerate
            silently trains without it.
    """
    wanted = {name: os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in _SPLITTING}
    if wanted["DEEPSPEED"]:
        raise KavaError(
            "DeepSpeed is not supported; launch with --use_fsdp --fsdp_version 2",
            code="system.no-deepspeed",
            key="DeepSpeed",
        )
    if wanted["FSDP"] and os.environ.get("FSDP_VERSION") != "2":
        raise KavaError(
            "FSDP version 1 is not supported; launch with --fsdp_version 2",
            code="system.first-fsdp",
            key="--fsdp_version",
        )
    if wanted["FSDP"] and device() == "cpu":
        raise KavaError(
            "accelerate shards weights only on accelerators, not on CPUs; remove --use_fsdp",
            code="system.fsdp-on-cpu",
            key="--use_fsdp",
        )


_SPLITTING = ("DEEPSPEED", "FSDP")


def device() -> str:
    """Return the device that the launcher assigns to this process: an accelerator or the CPU."""
    return str(_state().device)


def _state() -> Any:
    """Return accelerate's state; the first call joins the process group."""
    import torch
    from accelerate import PartialState

    on_cpu = cpu_requested() or not torch.cuda.is_available()
    if not on_cpu and torch.cuda.device_count() == 1:
        # SLURM may show each task its own GPU only. That is GPU 0 of the task, but accelerate's
        # barrier would use the GPU with the number of the task.
        os.environ["LOCAL_RANK"] = "0"
    return PartialState(cpu=on_cpu, timeout=_WORK_OF_ONE)


def cpu_requested() -> bool:
    """Whether `kava --cpu` or `accelerate launch --cpu` requested the CPU, with or without GPUs."""
    return os.environ.get(_CPU, "").lower() == "true"


def request_cpu() -> None:
    """Request the CPU for this process and those that it starts."""
    os.environ[_CPU] = "true"


_CPU = "ACCELERATE_USE_CPU"


def gather(value: T) -> list[T]:
    """Gather a value from every process; return the list, in rank order, on every process."""
    if world_size() == 1:
        return [value]
    from accelerate.utils import gather_object

    _state()
    return gather_object([value])


def split_over_ranks(parts: Iterable[T]) -> Iterator[T | None]:
    """Yield the parts of a shared work that belong to this process.

    Every process gets the same number of turns, so that collective operations can run in between.
    In the last turn, a process without a part gets None.
    """
    rest = iter(parts)
    while turn := list(islice(rest, world_size())):
        yield turn[rank()] if rank() < len(turn) else None


def raise_on_all_ranks(act: Callable[[], T]) -> T:
    """Return what `act` returns on this process; an error on any rank is raised on all ranks.

    Use it for work during which the processes do not communicate.

    Raises:
        KavaError: the error of the first rank that had one.
    """
    result, error = None, None
    try:
        result = act()
    except KavaError as caught:
        if world_size() == 1:
            raise
        error = str(caught), caught.code, caught.key
    except OSError as caught:
        if world_size() == 1 or caught.filename is None:
            raise
        name = str(caught.filename)
        error = f"{name}: {caught.strerror}", "system.file-error", name
    for other in gather(error):
        if other is not None:
            message, code, key = other
            raise KavaError(message, code=code, key=key)
    return result


def on_main_rank(act: Callable[[], T]) -> T | None:
    """Run `act` on the main process while the others wait; the others get None.

    Raises:
        KavaError: on all processes, if `act` failed.
    """
    return raise_on_all_ranks(lambda: act() if is_main() else None)


def from_main_rank(act: Callable[[], T]) -> T:
    """Run `act` on the main process only, and return its result on every process.

    Raises:
        KavaError: on all processes, if `act` failed.
    """
    return gather(on_main_rank(act))[0]


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on at least one process. All processes must call this together."""
    if world_size() == 1:
        return flag
    import torch
    from accelerate.utils import reduce

    return bool(reduce(torch.tensor(float(flag), device=device()), "sum"))


def main_rank_first(act: Callable[[], T]) -> T:
    """Run `act` on every process, the main one first, so that the others find its downloads.

    Raises:
        KavaError: on all processes, if `act` failed on one of them.
    """
    result = on_main_rank(act)
    return raise_on_all_ranks(lambda: result if is_main() else act())


# -- a micro-batch that is shared by the processes -----------------------------------------------

_weight: ContextVar[float | None] = ContextVar("kava_shared_batch", default=None)


@contextmanager
def shared_micro_batch(shared: bool, weight: float = 1.0) -> Iterator[None]:
    """Make `sum_over_micro_batch` sum over all processes that hold a part of the micro-batch.

    Args:
        weight: 0 if this process has no example of the micro-batch.
    """
    token = _weight.set(weight if shared else None)
    try:
        yield
    finally:
        _weight.reset(token)


def sum_over_micro_batch(part: Tensor) -> Tensor:
    """All-reduce a sum over this process's examples to the whole micro-batch, without gradient."""
    weight = _weight.get()
    if weight is None:
        return part
    from accelerate.utils import reduce

    return reduce(part.detach() * weight, "sum")


# -- errors and exit -----------------------------------------------------------------------------


def print_error(message: str) -> None:
    """Print an error, once for all processes."""
    from kava.system.text import printable

    once_across_ranks(lambda: print(printable(message), file=sys.stderr, flush=True))


def once_across_ranks(act: Callable[[], None]) -> None:
    """Run `act` on one of the processes that fail: on the main process, if it fails soon.

    The other processes wait until `act` has run, because a launcher ends all processes as soon as
    one has ended.
    """
    if world_size() == 1:
        act()
        return
    from torch.distributed import DistError, DistStoreError, PrefixStore, TCPStore

    try:
        _state()
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        meeting = TCPStore(host, port, is_master=False, timeout=_PATIENCE)
        store = PrefixStore(f"kava-error-{attempt}", meeting)
        if not is_main():
            with suppress(DistError, RuntimeError):  # the main process may not have failed
                store.wait(["told"], _HEAD_START)
        first = store.add("failed", 1) == 1
    except (DistError, DistStoreError, RuntimeError, ValueError):  # the store is gone
        first, store = True, None
    if first:
        act()
    if store is None:
        return
    try:
        if first:
            store.set("told", "yes")
        else:
            store.wait(["told"], _PATIENCE)
    except (DistError, RuntimeError):
        pass  # the process that ran `act` has already exited


def leave_process_group() -> None:
    """Leave the process group, after work that all processes have finished."""
    if world_size() > 1 and "torch" in sys.modules:
        _state().destroy_process_group()


def exit_process(status: int) -> None:
    """End this process with an exit status.

    With several processes, each one exits immediately. After an error, a normal exit would wait for
    processes that stopped in the middle of a collective operation. After success, a torch thread
    that frees a tensor during interpreter shutdown would occasionally abort the process, and the
    launcher would report all of them as failed.
    """
    if world_size() > 1:
        if status == 0:
            atexit._run_exitfuncs()  # lets loggers send what is left
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status) from None


def is_peer_failure(error: BaseException) -> bool:
    """Whether `error` is how torch reports that another process has ended."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    text = str(error)
    return isinstance(error, DistError) or any(words in text for words in _LOST)


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out")
