"""The one exception that is a message to the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
