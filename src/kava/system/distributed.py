"""More than one process, as `torchrun`, `accelerate launch` and jobs of SLURM start them.

The environment of each says how many there are. Splitting, gathering and waiting is
accelerate's; what is added here is that an error of one process ends all of them, told once.
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
#: Commands that share their work; the others run as one process.
COMMANDS = ("train", "eval", "pretrain")
_PATIENCE = timedelta(seconds=10)
_HEAD_START = timedelta(seconds=2)


def world_size() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    launched = "LOCAL_RANK" in os.environ
    return int(os.environ.get("WORLD_SIZE", 1)) if launched else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def check_command(words: list[str]) -> None:
    """Refuse several processes for a command that would do everything several times.

    Refuse one, too, where several were asked for: on CPUs `accelerate launch --num_processes 2`
    prepares for two and starts one (accelerate 1.15).

    Raises:
        KavaError: names the commands that can, or how several are started.
    """
    command = command_of(words)
    if command in COMMANDS and "LOCAL_RANK" not in os.environ and _set_by_accelerate("MASTER_PORT"):
        raise KavaError(
            "accelerate launch was to start several processes (it has set MASTER_PORT) and started "
            "one; on CPUs it starts all with --multi_gpu in place of --cpu, and so does torchrun",
            code="system.one-started-of-several",
            key="MASTER_PORT",
        )
    if world_size() > 1 and command not in (*COMMANDS, None):
        raise KavaError(
            f"'{command}' runs as one process, not as {world_size()}; torchrun and accelerate "
            f"launch are for {', '.join(COMMANDS)}",
            code="system.one-process-only",
            key=command,
        )


def command_of(words: list[str]) -> str | None:
    """The command among the words of a command line, None where there is none."""
    return next((word for word in words if not word.startswith("-")), None)


def _set_by_accelerate(name: str) -> bool:
    """Whether `accelerate launch` gave a variable its value, rather than passed it on.

    Its own environment does not have what it sets for what it starts.
    """
    mark = "ACCELERATE_MIXED_PRECISION"
    if not {mark, name} <= os.environ.keys():
        return False
    import psutil

    try:
        above = (process.environ() for process in psutil.Process().parents())
        launcher = next((there for there in above if mark not in there), {})
    except psutil.Error:  # another user's, or gone
        launcher = {}
    return launcher.get(name) != os.environ[name]


def check_sharding() -> None:
    """Refuse a way of splitting the weights that a launcher asks for and would not get here.

    Raises:
        KavaError: DeepSpeed; FSDP of the first version; FSDP on the CPU, where accelerate trains
            without it and says nothing.
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
            "FSDP's first version is not supported; launch with --fsdp_version 2",
            code="system.first-fsdp",
            key="--fsdp_version",
        )
    if wanted["FSDP"] and device() == "cpu":
        raise KavaError(
            "accelerate splits weights over accelerators, not over CPUs; leave out --use_fsdp",
            code="system.fsdp-on-cpu",
            key="--use_fsdp",
        )


_SPLITTING = ("DEEPSPEED", "FSDP")


def device() -> str:
    """The launcher's device for this process: its own accelerator, or the CPU."""
    return str(_state().device)


def _state() -> Any:
    """accelerate's state; joins the processes when it is first asked for."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=asked_for_cpu() or not torch.cuda.is_available())


def asked_for_cpu() -> bool:
    """Whether `accelerate launch --cpu` started this process, on a machine with GPUs or without."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def gather(value: T) -> list[T]:
    """Every process's value, in the order of the processes, on every process."""
    if world_size() == 1:
        return [value]
    from accelerate.utils import gather_object

    _state()
    return gather_object([value])


def split_over_ranks(parts: Iterable[T]) -> Iterator[T | None]:
    """This process's parts of a work that all share; None in a last turn that has none for it.

    Each has as many turns as the others, so that they can talk to one another in between.
    """
    rest = iter(parts)
    while turn := list(islice(rest, world_size())):
        yield turn[rank()] if rank() < len(turn) else None


def raise_on_all_ranks(act: Callable[[], T]) -> T:
    """What `act` returns here; an error of one process is raised on all.

    For work between which the processes do not talk to one another.

    Raises:
        KavaError: the first process's that had one.
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
    """Let the main process act while the others wait; they get None.

    Raises:
        KavaError: on all processes, if it failed.
    """
    return raise_on_all_ranks(lambda: act() if is_main() else None)


def from_main_rank(act: Callable[[], T]) -> T:
    """What `act` returns on the main process, which alone calls it; on every process.

    Raises:
        KavaError: on all processes, if it failed.
    """
    return gather(on_main_rank(act))[0]


def any_rank(flag: bool) -> bool:
    """Whether it is true on one of the processes at least; all of them call this together."""
    if world_size() == 1:
        return flag
    import torch
    from accelerate.utils import reduce

    return bool(reduce(torch.tensor(float(flag), device=device()), "sum"))


def main_rank_first(act: Callable[[], T]) -> T:
    """Every process acts, the main one before the others: what it downloads, they find.

    Raises:
        KavaError: on all processes, if one failed.
    """
    result = on_main_rank(act)
    return raise_on_all_ranks(lambda: result if is_main() else act())


# -- a batch that the processes share ------------------------------------------------------------

_weight: ContextVar[float | None] = ContextVar("kava_shared_batch", default=None)


@contextmanager
def shared_micro_batch(shared: bool, weight: float = 1.0) -> Iterator[None]:
    """Inside, `sum_over_micro_batch` sums over the processes that hold parts of a micro-batch.

    Args:
        weight: 0 where this process has no row of it.
    """
    token = _weight.set(weight if shared else None)
    try:
        yield
    finally:
        _weight.reset(token)


def sum_over_micro_batch(part: Tensor) -> Tensor:
    """A sum over this process's rows, made one over all rows of the micro-batch. No gradient."""
    weight = _weight.get()
    if weight is None:
        return part
    from accelerate.utils import reduce

    return reduce(part.detach() * weight, "sum")


# -- the end -------------------------------------------------------------------------------------


def print_error(message: str) -> None:
    """Print an error, once for all processes."""
    once_across_ranks(lambda: print(message, file=sys.stderr, flush=True))


def once_across_ranks(act: Callable[[], None]) -> None:
    """Let one of the processes act that come here when they fail: the main one, if it comes soon.

    The others wait until it has, because a launcher ends all when one has ended.
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
            with suppress(DistError, RuntimeError):  # it may be well, or stuck
                store.wait(["told"], _HEAD_START)
        first = store.add("failed", 1) == 1
    except (DistError, DistStoreError, RuntimeError, ValueError):  # nobody is left to ask
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
        pass  # the one that acts is gone, and has acted


def leave_process_group() -> None:
    """Part from the other processes, after work that all have finished."""
    if world_size() > 1 and "torch" in sys.modules:
        _state().destroy_process_group()


def exit_process(status: int) -> None:
    """End this process.

    Of several each ends at once. After an error, leaving politely would wait for those that stopped
    in the middle of something; after success, a thread of torch that frees a tensor while Python
    takes itself apart would now and then abort the process, and all of them would have failed.
    """
    if world_size() > 1:
        if status == 0:
            atexit._run_exitfuncs()  # what loggers have left to send
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status) from None


def is_peer_failure(error: BaseException) -> bool:
    """Whether this is how torch says that another process is gone."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    text = str(error)
    return isinstance(error, DistError) or any(words in text for words in _LOST)


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out")
