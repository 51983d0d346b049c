"""The one exception that is a message to the user."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class KavaError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


def unknown(kind: str, name: str, known: Iterable[str], more: str = "") -> KavaError:
    """The error for a wrong name: the nearest known one, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
    return KavaError(" ".join(f"unknown {kind} '{name}'; {hint} {more}".split()))


def install(extra: str) -> str:
    """How to get what an extra brings: from a clone, since PyPI's `kava` is another project."""
    return f"install kava with its extra '{extra}': pip install -e '.[{extra}]' in its clone"


@contextmanager
def writing(path: Path, then: str = "free some space and begin again") -> Iterator[None]:
    """Turn whatever a full or failing disk raises inside into one line.

    safetensors and torch have errors of their own for it, which are no OSError.

    Args:
        then: how to go on, where the place as such can be written.

    Raises:
        KavaError: names the path and the system's reason.
    """
    try:
        yield
    except KavaError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _DISK):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0][:200]
        if getattr(error, "errno", None) in _NOT_SPACE:
            then = "give another place"
        raise KavaError(f"{path}: cannot be written: {reason}; {then}") from None


#: Where more space would not help.
_NOT_SPACE = {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip
#: In messages of safetensors (which gives the system's reason) and of torch.save.
_DISK = ("os error", "PytorchStreamWriter failed", "unexpected pos", "file write failed")


def out_of_memory(error: BaseException) -> str | None:
    """The line for an allocation that torch could not make; None for another error."""
    told = str(error).strip()
    if not told or not any(sign in told for sign in _MEMORY):
        return None
    reason = told.splitlines()[0].rpartition("DefaultCPUAllocator: ")[2][:200]
    return (
        f"memory ran out: {reason}; hold fewer rows at once (train.micro_batch_size, "
        "eval.batch_size, --batch), or less of each (train.gradient_checkpointing=true)"
    )


#: In messages of torch's allocators, for GPUs and for CPUs.
_MEMORY = ("out of memory", "DefaultCPUAllocator: ")
