"""Text that cannot be written as UTF-8 is found before any work is done with it."""

from __future__ import annotations

from kava.errors import KavaError


def check_text(text: str, what: str) -> None:
    """Raise a KavaError where a text holds half of a surrogate pair, which is no character.

    It comes from `\\ud83d` alone in JSON, and from bytes that are not UTF-8 on a command line.

    Args:
        what: the text's name, for the error.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"\\u{code:04x}"
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it could not decode
            found = f"the byte 0x{code - 0xDC00:02x}, or {found}"
        raise KavaError(
            f"{what} is no valid Unicode text: character {error.start + 1} is {found}; write it "
            "in UTF-8"
        ) from None
