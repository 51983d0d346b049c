"""Rules that read an answer from a generated text and compare it with the gold answer.

`numeric` is the headline rule. The rules of CODI and PCCoT are reported next to it, because
published scores are based on them, and so is the rule of math-verify, because many leaderboards use
it. A rule takes the text and the gold answer, and says whether they agree. docs/answers.md shows
how each rule reads difficult cases.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from kava.data.answers import canonical_form, plain_number, read_answer, read_number
from kava.evaluation import symbolic
from kava.system.text import format_count

_MARKER = re.compile(r"the\s+answer\s+is\s*:|####", re.IGNORECASE)
_CODI_NUMBER = re.compile(r"-?\d+\.?\d*")
#: LaTeX without `$`, of which math-verify would read the first number.
_LATEX = re.compile(r"\\[a-zA-Z{]|\^")


def note_on_unreadable_golds(golds: Iterable[str]) -> str | None:
    """Explain how the headline rule treats right answers that are not numbers; None if all are."""
    golds = list(golds)
    kinds = {gold: read_answer(gold).kind for gold in dict.fromkeys(golds)}
    found = Counter(kinds[gold] for gold in golds)
    if not (others := len(golds) - found["number"]):
        return None
    shown = [repr(gold[:40]) for gold, kind in kinds.items() if kind != "number"][:2]
    readers = (
        ("expression", "'math_verify' reads", "expression"),
        ("words", "'string' compares", "text"),
        ("unreadable", "no rule reads", "other"),
    )
    examples = [
        f"{rule} {format_count(found[kind], thing)}" for kind, rule, thing in readers if found[kind]
    ]
    return (
        f"{others:,} of {len(golds):,} right answers are not plain numbers, such as "
        f"{' and '.join(shown)}; by '{HEADLINE}', the headline, nothing is right there; "
        + ", ".join(examples)
    )


def note_on_markers(
    texts: Sequence[str], golds: Sequence[str], correct: Sequence[dict[str, bool]]
) -> str | None:
    """Explain predictions whose answer has no marker, or is followed by another one.

    A text may state its answer in another way (`\\boxed{18}`), or go on with a question of its
    own. The headline then reads nothing, or the last answer.

    Args:
        correct: the scores of the texts, by rule.
    """
    lines, n = [], len(texts)
    unmarked = [c for text, c in zip(texts, correct, strict=True) if after_marker(text) is None]
    if unmarked:
        read = [(rule, sum(c[rule] for c in unmarked)) for rule in unmarked[0]]
        right = ", ".join(f"'{rule}' {hits:,}" for rule, hits in read if hits) or "no rule any"
        lines.append(
            f"{len(unmarked):,} of {n:,} predictions have neither 'The answer is:' nor '####', so "
            f"'{HEADLINE}' counts them as wrong; of these, right by {right}"
        )
    changed = [c for c in map(_answers_first_and_last, texts, golds) if c is not None]
    if changed:
        lines.append(
            f"{len(changed):,} of {n:,} predictions state another answer after their first; "
            f"'{HEADLINE}' reads the last, and in {sum(changed):,} of them the first is right"
        )
    return "\n".join(lines) or None


def _answers_first_and_last(text: str, gold: str) -> bool | None:
    """Whether the first of several different answers in a text is right; None if there is one."""
    ends = [match.end() for match in _MARKER.finditer(text)]
    if len(ends) < 2:
        return None
    first, last = (_number_after_marker(text[end:].strip()) for end in (ends[0], ends[-1]))
    return None if first == last else first is not None and first == read_answer(gold).value


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


def numeric_match(text: str, gold: str) -> bool:
    """Whether the number after the last marker equals `gold` exactly.

    If the line after the marker is a number as a whole (`3 1/2`), that is it, otherwise the first
    number there. No number is wrong, and so is anything if `gold` is not a number (`read_answer`).
    """
    value, tail = read_answer(gold).value, after_marker(text)
    return value is not None and tail is not None and _number_after_marker(tail) == value


def last_number(text: str, gold: str) -> bool:
    """CODI's rule (arXiv:2502.21074, its code): whether the last number in the text equals `gold`.

    Commas are removed first. As in CODI's code, `.5` and `2/5` are read as 5, and the minus in
    `10-5` belongs to the 5.
    """
    found = _CODI_NUMBER.findall(text.replace(",", ""))
    number = read_number(found[-1]) if found else None
    return number is not None and number == read_answer(gold).value


def string(text: str, gold: str) -> bool:
    """PCCoT's rule (arXiv:2506.18582): whether the text after the last marker equals `gold`."""
    return after_marker(text) == gold


def math_verify(text: str, gold: str) -> bool:
    """The rule of math-verify (Hugging Face): whether it reads the same in the text as in `gold`.

    It gets the text after the last marker. Without a marker it gets the whole text and searches it
    for an answer (it does not find the 18 of `The answer is:18`, which has no blank). Of a text
    longer than 2,000 characters, it gets the first 2,000 after a marker, or the last 2,000 without
    a marker, cut at a blank. math-verify rounds to 6 decimals and uses the last of several numbers;
    50 % equals 50. The gold number is first written out (`-.5` as `-0.5`), and LaTeX without `$` is
    put between two, because math-verify would read a part of it otherwise (the 2 of `2\\sqrt{3}`).
    Words are not compared.
    """
    kind = read_answer(gold).kind
    if kind not in ("number", "expression"):
        return False
    read = after_marker(text)
    if read is None:
        read = text
        if len(read) > symbolic.MAX_CHARS:
            read = read[-symbolic.MAX_CHARS :].partition(" ")[2]
    elif len(read) > symbolic.MAX_CHARS:
        read = read[: symbolic.MAX_CHARS].rpartition(" ")[0]
    if after_marker(text) is not None:
        read = _for_math_verify(read)
    gold = _write_out(gold) if kind == "number" else _for_math_verify(gold)
    return bool(read) and symbolic.is_equivalent(read, gold)


HEADLINE = "numeric"
RULES: dict[str, Callable[[str, str], bool]] = {
    "numeric": numeric_match,
    "last_number": last_number,
    "string": string,
    "math_verify": math_verify,
}


def score(text: str, gold: str, rules: Sequence[str] = tuple(RULES)) -> dict[str, bool]:
    """Score a text by each rule; return whether it is correct, by the name of the rule."""
    return {name: RULES[name](text, gold) for name in rules}


def _number_after_marker(tail: str) -> Fraction | None:
    line = tail.partition("\n")[0].strip()
    whole = read_answer(line)
    if whole.kind == "expression" and _LATEX.search(line):
        return None  # the 2 of \frac{2}{5} is not its value
    return read_number(tail) if whole.value is None else whole.value


def _for_math_verify(text: str) -> str:
    """Return an expression between `$`, and a number without thousands separators."""
    if "$" not in text and read_answer(text).kind == "expression":
        return f"${text}$"
    return canonical_form(text)


def _write_out(gold: str) -> str:
    """Format a number in digits, or as a fraction; math-verify handles a percent sign itself."""
    gold = canonical_form(gold)
    try:
        return plain_number(Decimal(gold))
    except InvalidOperation:  # a fraction, or a number with a unit
        return gold if "%" in gold else str(read_answer(gold).value)


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
