"""The one exception that is a message to the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KavaError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with status 2. What a program can rely
    on is `code` and `key`; the message is for people and may change.

    Args:
        code: a stable name for what is wrong, `room.what-is-wrong`, such as `recipe.unknown-key`.
        key: the recipe key, option, field, name or file that it is about, if there is one.
    """

    def __init__(self, message: str, *, code: str = "", key: str | None = None):
        super().__init__(message)
        self.code, self.key = code, key

    def within(self, where: str) -> KavaError:
        """The same error with a place before its message, such as the file it was found in."""
        return KavaError(f"{where}: {self}", code=self.code, key=self.key)


def unknown(
    kind: str, name: str, known: Iterable[str], more: str = "", *, code: str = "unknown-name"
) -> KavaError:
    """The error for a wrong name, which is its key: the nearest known one, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
    message = " ".join(f"unknown {kind} '{name}'; {hint} {more}".split())
    return KavaError(message, code=code, key=name)


def install(extra: str) -> str:
    """How to get what an extra brings: from a clone, since PyPI's `kava` is another project."""
    return f"install kava with its extra '{extra}': pip install -e '.[{extra}]' in its clone"


def out_of_memory(error: BaseException) -> str | None:
    """The line for an allocation that torch could not make; None for another error."""
    told = str(error).strip()
    if not told or not any(sign in told for sign in _MEMORY):
        return None
    reason = told.splitlines()[0].rpartition("DefaultCPUAllocator: ")[2][:200]
    return (
        f"out of memory: {reason}; lower train.micro_batch_size, eval.batch_size or --batch, "
        "or set train.gradient_checkpointing=true"
    )


#: In messages of torch's allocators, for GPUs and for CPUs.
_MEMORY = ("out of memory", "DefaultCPUAllocator: ")
