"""Text that cannot be written as UTF-8, or would do something in a terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from kava.errors import KavaError, first_line


def check_text(text: str, what: str) -> None:
    """Raise a KavaError if a text contains half of a surrogate pair, which is not a character.

    It comes from a lone `\\ud83d` in JSON, and from bytes on a command line that are not UTF-8.

    Args:
        what: the name of the text, for the error message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"\\u{code:04x}"
        if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte that it could not decode
            found = f"the byte 0x{code - 0xDC00:02x}, or {found}"
        raise KavaError(
            f"{what} is not valid Unicode text: character {error.start + 1} is {found}; encode "
            "it as UTF-8",
            code="system.not-unicode",
            key=what,
        ) from None


#: C0 without tab and newline, DEL and C1: what begins with them a terminal does and does not show.
_CONTROLS = dict.fromkeys(code for code in (*range(32), *range(127, 160)) if code not in (9, 10))


def printable(text: str) -> str:
    """Return a text without the control characters that could move the cursor of a terminal."""
    return text.translate(_CONTROLS)


class PlainConsole(Console):
    """Shows texts as they are: control characters left out, brackets and colons no markup."""

    def __init__(self, **how: Any):
        super().__init__(**{"markup": False, "emoji": False, **how})

    def render(self, *what: Any, **how: Any) -> Iterable[Segment]:
        """Render with rich, and remove control characters from the text, but not rich's own."""
        for part in super().render(*what, **how):
            yield part if part.control else Segment(printable(part.text), part.style)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds as `47 s`, `2 min 05 s` or `1 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(size: float) -> str:
    """Format a number of bytes as `18.5 GB` or `432 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun, such as `1 run` or `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_text(console: Console, *parts: str) -> None:
    """Print `one: two` unchanged, whatever brackets and numbers it contains."""
    console.print(": ".join(parts), highlight=False, markup=False)


def one_line(error: Exception) -> str:
    """Return the first line of an error, with its type unless it is a message to the user."""
    first = first_line(error)
    return first if isinstance(error, KavaError) else f"{type(error).__name__}: {first}"


def print_columns(console: Console, rows: list[tuple[str, ...]]) -> None:
    """Print rows of text as columns, without colours or a frame, so that they can be piped."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_text(console, "  ".join(cells).rstrip())
