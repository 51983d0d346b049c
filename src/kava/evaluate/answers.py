"""Rules for reading an answer from a generated text and comparing it with the right one.

`numeric` is the headline; the rules of CODI and PCCoT are reported beside it, because published
scores rest on them. A rule takes the text and the gold answer and says whether they agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

_MARKER = re.compile(r"the\s+answer\s+is\s*:|####", re.IGNORECASE)
_UNSIGNED = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-−])?(?:\\?[$€£¥]\s?)?(?P<inner>(?<![\w)])[-−])?"
    rf"(?P<above>{_UNSIGNED}(?:[eE](?P<power>[-+]?[0-9]+))?)"
    rf"(?:\s?/\s?(?P<below>{_UNSIGNED}))?"
)
_CODI_NUMBER = re.compile(r"-?\d+\.?\d*")
# Past these a number is noise from a model that rambles, and exact arithmetic on it is slow.
_LONGEST, _HIGHEST_POWER = 1000, 999


def read_number(text: str) -> Fraction | None:
    """The first number in `text`, exactly, or None.

    Read: thousands commas (`1,234`), decimals (`.5`, `5.`), fractions (`2/5`), powers (`1.2e-06`),
    a minus (`-`, `−`; before or after a currency sign). A sign of currency or per cent is left
    out, so `50%` is 50, as answers of GSM8K have it. None for a division by zero, for more than
    1,000 characters and for powers of ten beyond 999.
    """
    match = _NUMBER.search(text)
    if match is None or len(match.group()) > _LONGEST:
        return None
    if match["power"] and abs(int(match["power"])) > _HIGHEST_POWER:
        return None
    value = _exact(match["above"])
    if match["below"]:
        below = _exact(match["below"])
        if below == 0:
            return None
        value /= below
    return -value if match["sign"] or match["inner"] else value


def after_marker(text: str) -> str | None:
    """What follows the last `The answer is:` (any case) or `####`, stripped; None without one."""
    ends = [match.end() for match in _MARKER.finditer(text)]
    return text[ends[-1] :].strip() if ends else None


def parted(text: str) -> tuple[str, str | None]:
    """What stands before the first marker, and what follows it up to the line's end, stripped.

    Without a marker, the whole text and None.
    """
    match = _MARKER.search(text)
    if match is None:
        return text.strip(), None
    return text[: match.start()].strip(), text[match.end() :].strip().partition("\n")[0].strip()


def numeric(text: str, gold: str) -> bool:
    """The first number after the last marker equals `gold`, exactly; no number is wrong."""
    tail = after_marker(text)
    number = None if tail is None else read_number(tail)
    return number is not None and number == read_number(gold)


def last_number(text: str, gold: str) -> bool:
    """CODI's rule (arXiv:2502.21074, its code): the last number anywhere, commas removed.

    As there, `.5` and `2/5` read as 5, and the minus of `10-5` belongs to the 5.
    """
    found = _CODI_NUMBER.findall(text.replace(",", ""))
    number = read_number(found[-1]) if found else None
    return number is not None and number == read_number(gold)


def string(text: str, gold: str) -> bool:
    """PCCoT's rule (arXiv:2506.18582): the text after the last marker is `gold`, as a string."""
    return after_marker(text) == gold


RULES: dict[str, Callable[[str, str], bool]] = {
    "numeric": numeric,
    "last_number": last_number,
    "string": string,
}


def score(text: str, gold: str) -> dict[str, bool]:
    """Whether `text` is right, by each rule."""
    return {name: rule(text, gold) for name, rule in RULES.items()}


def _exact(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
