"""Measure the peak memory of a piece of work."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The peak memory, in bytes; `bytes` is set once the work is finished.

    of: `accelerator` (memory allocated there) or `process` (resident memory).
    since_start: the peak of the process could not be reset before the work, and may be older.
    reserved: most bytes that the allocator held, with its gaps; None for a process.
    """

    of: str
    bytes: int = 0
    since_start: bool = False
    reserved: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory inside the block, including what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak("accelerator")
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        peak.reserved = torch.cuda.max_memory_reserved(device)
        return
    peak = Peak("process", since_start=not _reset_peak())
    yield peak
    peak.bytes = _resident_peak()


def _reset_peak() -> bool:
    """Reset the peak of this process, which Linux allows; return whether it worked."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident_peak() -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has finished its work; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
