"""Rules for reading an answer from a generated text and comparing it with the right one.

`numeric` is the headline; the rules of CODI and PCCoT are reported beside it, because published
scores rest on them, and math-verify's, because many leaderboards do. A rule takes the text and the
gold answer and says whether they agree. docs/answers.md shows what each makes of hard cases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from kava.data.files import plain_number
from kava.evaluation import symbolic

_MARKER = re.compile(r"the\s+answer\s+is\s*:|####", re.IGNORECASE)
_UNSIGNED = r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)"
# Hyphens and the en dash too, as editors put them for a minus.
_MINUS = r"(?<![\w)])[-−\u2010-\u2013]"
_NUMBER = re.compile(
    rf"(?P<sign>{_MINUS})?(?:\\?[$€£¥]\s?)?(?P<inner>{_MINUS})?"
    rf"(?P<above>{_UNSIGNED}(?:[eE](?P<power>[-+]?[0-9]+))?)"
    rf"(?:\s?/\s?(?P<below>{_UNSIGNED}))?"
)
_CODI_NUMBER = re.compile(r"-?\d+\.?\d*")
# Past these a number is noise from a model that rambles, and exact arithmetic on it is slow.
_LONGEST, _HIGHEST_POWER = 1000, 999


def read_number(text: str) -> Fraction | None:
    """The first number in `text`, exactly, or None.

    Read: decimals (`.5`, `5.`), fractions (`2/5`), powers (`1.2e-06`), a minus (`-`, `−`, a hyphen
    or en dash; before or after a currency sign). Commas between digits are removed, whatever they
    group (`1,234`, `12,34`). A sign of currency or per cent is left out, so `50%` is 50, as answers
    of GSM8K have it. A dash with a blank behind it is none of the number's (`- 5` is 5: an item of
    a list), and of a mixed number the first one counts (`3 1/2` is 3). None for a division by
    zero, for more than 1,000 characters and for powers of ten beyond 999.
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


def note_on_unreadable_golds(golds: Iterable[str]) -> str | None:
    """What the headline makes of right answers that hold no number, in a line; None without any."""
    golds = list(golds)
    found = [gold for gold in golds if read_number(gold) is None]
    if not found:
        return None
    return (
        f"{len(found):,} of {len(golds):,} right answers hold no number, such as "
        f"{found[0][:40]!r}: by '{HEADLINE}', the headline, nothing is right there; 'string' "
        "compares texts"
    )


def after_marker(text: str) -> str | None:
    """What follows the last `The answer is:` (any case) or `####`, stripped; None without one."""
    ends = [match.end() for match in _MARKER.finditer(text)]
    return text[ends[-1] :].strip() if ends else None


def split_at_marker(text: str) -> tuple[str, str | None]:
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


def math_verify(text: str, gold: str) -> bool:
    """math-verify (Hugging Face): what it reads in the text equals what it reads in `gold`.

    It is given what follows the last marker, else the whole text, in which it looks for an answer
    by itself (it does not find the 18 of `The answer is:18`, which has no blank). Of more than
    2,000 characters it is given the first of them after a marker, the last without one, up to a
    blank. It rounds to 6 decimals and takes the last of several numbers; 50 % equals 50.
    A gold number is written out first (`-.5` as `-0.5`), since it would not read it else.
    """
    read = after_marker(text)
    if read is None:
        read = text
        if len(read) > symbolic.LONGEST:
            read = read[-symbolic.LONGEST :].partition(" ")[2]
    elif len(read) > symbolic.LONGEST:
        read = read[: symbolic.LONGEST].rpartition(" ")[0]
    return bool(read) and symbolic.agrees(read, _written_out(gold))


HEADLINE = "numeric"
RULES: dict[str, Callable[[str, str], bool]] = {
    "numeric": numeric,
    "last_number": last_number,
    "string": string,
    "math_verify": math_verify,
}


def score(text: str, gold: str, rules: Sequence[str] = tuple(RULES)) -> dict[str, bool]:
    """Whether `text` is right, by each rule."""
    return {name: RULES[name](text, gold) for name in rules}


def _written_out(gold: str) -> str:
    try:
        return plain_number(Decimal(gold))
    except InvalidOperation:  # a fraction, or no number
        return gold


def accuracy_by_rule(correct: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Percent of texts that are right, by rule, from what `score` says of each."""
    n = len(correct)
    return {rule: percent(sum(c[rule] for c in correct), n) for rule in (correct[0] if n else ())}


def percent(hits: int, n: int) -> float:
    """Accuracy, to two places."""
    return round(100 * hits / n, 2) if n else 0.0


def standard_error(hits: int, n: int) -> float:
    """Of an accuracy of `hits` in `n`, in percent points (binomial), to four places."""
    if n == 0:
        return 0.0
    share = hits / n
    return round(100 * math.sqrt(share * (1 - share) / n), 4)


def _exact(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
