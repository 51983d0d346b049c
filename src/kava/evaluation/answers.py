"""Rules that read an answer from a generated text and compare it with the gold answer.

`numeric` is the headline rule. The rules of CODI and PCCoT are reported next to it, because
published scores are based on them, and so is the rule of math-verify, because many leaderboards use
it. A rule takes the text and the gold answer, and says whether they agree. docs/answers.md shows
how each rule reads difficult cases.
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
# Includes hyphens and the en dash, which editors insert in place of a minus.
_MINUS = r"(?<![\w)])[-−\u2010-\u2013]"
_NUMBER = re.compile(
    rf"(?P<sign>{_MINUS})?(?:\\?[$€£¥]\s?)?(?P<inner>{_MINUS})?"
    rf"(?P<above>{_UNSIGNED}(?:[eE](?P<power>[-+]?[0-9]+))?)"
    rf"(?:\s?/\s?(?P<below>{_UNSIGNED}))?"
)
_CODI_NUMBER = re.compile(r"-?\d+\.?\d*")
# Beyond these limits a number is noise from a rambling model, and exact arithmetic is slow.
_LONGEST, _HIGHEST_POWER = 1000, 999


def read_number(text: str) -> Fraction | None:
    """Return the first number in `text` as an exact fraction, or None.

    It reads decimals (`.5`, `5.`), fractions (`2/5`), powers (`1.2e-06`) and a minus (`-`, `−`, a
    hyphen or en dash; before or after a currency sign). Commas between digits are removed, whatever
    they group (`1,234`, `12,34`). Currency and percent signs are ignored, so `50%` is 50, as in the
    answers of GSM8K. A dash that is followed by a blank is not part of the number (`- 5` is 5: an
    item of a list). For a mixed number, the first number counts (`3 1/2` is 3). The result is None
    for a division by zero, for more than 1,000 characters, and for powers of ten beyond 999.
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
    """Explain how the headline rule treats gold answers without a number; None if all have one."""
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
    """Return the stripped text after the last `The answer is:` (any case) or `####`, or None."""
    ends = [match.end() for match in _MARKER.finditer(text)]
    return text[ends[-1] :].strip() if ends else None


def split_at_marker(text: str) -> tuple[str, str | None]:
    """Return the text before the first marker, and the text after it on the same line, stripped.

    Without a marker, return the whole text and None.
    """
    match = _MARKER.search(text)
    if match is None:
        return text.strip(), None
    return text[: match.start()].strip(), text[match.end() :].strip().partition("\n")[0].strip()


def numeric(text: str, gold: str) -> bool:
    """Whether the first number after the last marker equals `gold` exactly; no number is wrong."""
    tail = after_marker(text)
    number = None if tail is None else read_number(tail)
    return number is not None and number == read_number(gold)


def last_number(text: str, gold: str) -> bool:
    """CODI's rule (arXiv:2502.21074, its code): whether the last number in the text equals `gold`.

    Commas are removed first. As in CODI's code, `.5` and `2/5` are read as 5, and the minus in
    `10-5` belongs to the 5.
    """
    found = _CODI_NUMBER.findall(text.replace(",", ""))
    number = read_number(found[-1]) if found else None
    return number is not None and number == read_number(gold)


def string(text: str, gold: str) -> bool:
    """PCCoT's rule (arXiv:2506.18582): whether the text after the last marker equals `gold`."""
    return after_marker(text) == gold


def math_verify(text: str, gold: str) -> bool:
    """The rule of math-verify (Hugging Face): whether it reads the same in the text as in `gold`.

    It gets the text after the last marker. Without a marker it gets the whole text and searches it
    for an answer (it does not find the 18 of `The answer is:18`, which has no blank). Of a text
    longer than 2,000 characters, it gets the first 2,000 after a marker, or the last 2,000 without
    a marker, cut at a blank. math-verify rounds to 6 decimals and uses the last of several numbers;
    50 % equals 50. The gold number is first written out (`-.5` as `-0.5`), because math-verify
    would not read it otherwise.
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
    """Score a text by each rule; return whether it is correct, by the name of the rule."""
    return {name: RULES[name](text, gold) for name in rules}


def _written_out(gold: str) -> str:
    try:
        return plain_number(Decimal(gold))
    except InvalidOperation:  # a fraction, or not a number
        return gold


def accuracy_by_rule(correct: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Return the percentage of correct texts for each rule, from the results of `score`."""
    n = len(correct)
    return {rule: percent(sum(c[rule] for c in correct), n) for rule in (correct[0] if n else ())}


def percent(hits: int, n: int) -> float:
    """Return an accuracy in percent, rounded to two decimals."""
    return round(100 * hits / n, 2) if n else 0.0


def standard_error(hits: int, n: int) -> float:
    """Return the standard error of `hits` in `n`, in percentage points, to four decimals.

    The error is binomial.
    """
    if n == 0:
        return 0.0
    share = hits / n
    return round(100 * math.sqrt(share * (1 - share) / n), 4)


def _exact(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
