"""`KavaError`, the exception for messages to the user, and functions that create such messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KavaError(Exception):
    """Error for invalid input, with a message of one line: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 2. Programs can
    rely on `code` and `key`; the message is for people and may change.

    Args:
        message: the message.
        code: a stable name of the error, `package.what-is-wrong`, such as `recipe.unknown-key`.
        key: the recipe key, option, field, name or file that the error is about, if any.
    """

    def __init__(self, message: str, *, code: str = "", key: str | None = None):
        super().__init__(message)
        self.code, self.key = code, key

    def with_location(self, where: str) -> KavaError:
        """Return a copy of the error with a location, such as a file, before its message."""
        return KavaError(f"{where}: {self}", code=self.code, key=self.key)


def truncate(text: str, max_length: int = 80) -> str:
    """Return a text of at most `max_length` characters; a longer one is cut and ends in `...`."""
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."


def first_line(error: object, max_length: int = 300) -> str:
    """Return the first line of another library's error, shortened; empty if it has none."""
    return truncate(str(error).strip().partition("\n")[0], max_length)


def on_one_line(error: object, max_length: int = 300) -> str:
    """Return the whole text of another library's error on one line, shortened."""
    return truncate(" ".join(str(error).split()), max_length)


def unknown_name(
    kind: str, name: str, known: Iterable[str], more: str = "", *, code: str = "unknown-name"
) -> KavaError:
    """Return the error for an unknown name, which suggests the closest known name or lists all.

    Args:
        kind: what the name is for, such as `task`.
        name: the unknown name; it becomes the key of the error.
        known: all known names.
        more: text to append to the message.
        code: the code of the error.
    """
    known = sorted(known)
    close = difflib.get_close_matches(truncate(name), known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
    message = " ".join(f"unknown {kind} '{truncate(name)}'; {hint} {more}".split())
    return KavaError(message, code=code, key=name)


def install(extra: str) -> str:
    """Return how to install an extra of the package.

    It is installed from a clone, since `kava` on PyPI is another project.
    """
    return f"install kava with the extra '{extra}': pip install -e '.[{extra}]' in a clone of kava"


def out_of_memory(error: BaseException) -> str | None:
    """Return a message of one line if torch ran out of memory, or None for any other error."""
    message = str(error).strip()
    if not message or not any(sign in message for sign in _MEMORY):
        return None
    reason = truncate(first_line(message, 400).rpartition("DefaultCPUAllocator: ")[2], 200)
    return (
        f"out of memory: {reason}; lower train.micro_batch_size, eval.batch_size or --batch, "
        "or set train.gradient_checkpointing=true"
    )


#: Texts in the out-of-memory errors of torch's allocators for GPUs and CPUs.
_MEMORY = ("out of memory", "DefaultCPUAllocator: ")
