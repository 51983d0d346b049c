"""What a right answer is: a number, an expression, words, or nothing that a rule can compare.

`read_answer` decides it, for rows that are loaded and for rows that are scored, so that an answer
is never compared by a part of it. docs/answers.md lists what counts as a number.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

Kind = Literal["number", "expression", "words", "unreadable"]

_UNSIGNED = r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)"
# Includes hyphens and the en dash, which editors insert in place of a minus.
_DASH = "[-−\u2010-\u2013]"
_MINUS = rf"(?<![\w)]){_DASH}"
_CURRENCY = r"(?:\\?[$€£¥₹₩₽])"
_NUMBER = re.compile(
    rf"(?P<sign>{_MINUS})?(?:{_CURRENCY}\s?)?(?P<inner>{_MINUS})?"
    rf"(?P<above>{_UNSIGNED}(?:[eE](?P<power>[-+]?[0-9]+))?)"
    rf"(?:\s?/\s?(?P<below>{_UNSIGNED}))?"
)
# Beyond these limits a number is noise from a rambling model, and exact arithmetic is slow.
_LONGEST, _HIGHEST_POWER = 1000, 999

# Commas between thousands, also as in India (12,34,567); blanks; points if there are several.
_GROUPED = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}"
    r"|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
)
_POINTED = r"[0-9]{1,3}(?:\.[0-9]{3}){2,}"
_PLAIN = rf"(?:{_POINTED}|{_GROUPED})"
_WHOLE = re.compile(
    rf"(?P<sign>{_DASH}|\+)?(?:(?:{_CURRENCY}|US\$|USD|EUR|GBP|Rs\.?)\s?)?(?P<inner>{_DASH})?"
    rf"(?:(?P<whole>[0-9]+) (?P<part>[0-9]+)/(?P<parts>[0-9]+)"
    rf"|(?P<above>{_PLAIN})(?:[eE](?P<power>[-+]?[0-9]+))?(?:\s?/\s?(?P<below>{_PLAIN}))?)"
    r"\s*(?P<unit>.*)",
    re.DOTALL,
)
_SIMPLE = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_BARE = re.compile(rf"[-+−]?{_PLAIN}")

_SEPARATOR = r"(?:\{,\}|,?\\[,!;: ]|['’~]|[\u00a0\u2007-\u2009\u202f])"
_SEPARATED = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)")
_OTHER_SIGNS = str.maketrans({"٬": ",", "٫": ".", "٪": "%", "⁄": "/"})
_ORDINARY = re.compile(r"[^\\'~{}\u0080-\U0010ffff]*")

_FORMULA_FORMS = (
    re.compile(r"\$\$?((?:[^$]|\\\$)+)\$\$?"),
    re.compile(r"\\\((.+)\\\)"),
    re.compile(r"\\\[(.+)\\\]", re.DOTALL),
    re.compile(r"\\(?:boxed|fbox|mathbf|textbf)\{(.+)\}"),
    re.compile(r"\*\*(.+)\*\*"),
    re.compile(r"(.*[^.])\."),  # a full stop
)
_MARKER = re.compile(r"the\s+answer\s+is\s*:|####", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_UNIT = re.compile(
    r"%|\\%|°[CF]?|\^\{?\\circ\}?|[^\W\d_]+(?:\^\{?[23]\}?)?"
    r"(?:(?: per | ?/ ?|[ .'’-]+)[^\W\d_]+(?:\^\{?[23]\}?)?){0,4}\.?"
)
_TIME_OR_DATE = re.compile(
    r"\d+(?::\d+)*\s*[ap]\.?\s?m\.?|\d+:\d+(?::\d+)?|\d{4}-\d\d?-\d\d?|\d\d?[/.]\d\d?[/.]\d{2,4}",
    re.IGNORECASE,
)
#: Words behind a number that change its value, or join it with something else.
_NO_UNIT = re.compile(
    r"(?:hundred|thousand|[mbtr]+illion|dozen|third|fourth|fifth)s?|k|mio|bn|half|halves|and|or|to"
    r"|plus|minus|times|over|squared|cubed|by|less|more|than|not|[ap]m|o'clock"
)
_VARIABLES = frozenset("abeinpqrxyzπθ")
_WORD = re.compile(r"(?<!\\)(?<![^\W\d_])[^\W\d_]{2,}")
_CHOICE = re.compile(r"\(?[^\W\d_]\)?")  # A, or (A)
_MACRO = re.compile(r"\\[a-zA-Z]+")
_OF_MATHEMATICS = re.compile("sin|cos|tan|log|ln|exp|sqrt|pi|infty|mod|gcd|lcm|max|min")
_OPERATOR = re.compile(r"\\[a-zA-Z{]|[\^=<>√π∞±×÷≤≥*+|!]|[\w)}]\s*[-−/]\s*[\w({\\]|[(\[{].*[)\]}]")
_LIST = re.compile(r"[^,]+,\s+[^,]+|[^,]+(?:,[^,]+){2,}")


@dataclass(frozen=True)
class ParsedAnswer:
    """What an answer is, and its exact value if it is a number.

    `expression` is for `math_verify`, `words` are compared as a text; nothing reads `unreadable`: a
    whole solution, a division by zero, a number with a comma that groups nothing (`0,5`).
    """

    kind: Kind
    value: Fraction | None = None


UNREADABLE = ParsedAnswer("unreadable")


def read_answer(text: str) -> ParsedAnswer:
    """Parse an answer as a whole: as a number, an expression or words.

    A number may have a sign, separators between thousands (commas, blanks, apostrophes, `{,}`,
    `\\,`), a currency, a unit or a percent sign, which are ignored, digits of any script, and
    delimiters of LaTeX (`$18$`, `\\boxed{18}`). `3 1/2` is a number too; `5 million` is words.
    """
    if len(text) > _LONGEST or _MARKER.search(text):
        return UNREADABLE
    if _SIMPLE.fullmatch(text):  # most answers; ten times as fast
        return ParsedAnswer("number", Fraction(text))
    plain = _strip_formula(normalize_text(text).strip())
    if _TIME_OR_DATE.fullmatch(plain):
        return ParsedAnswer("words")
    number = _WHOLE.fullmatch(plain)
    if number and _is_unit(number["unit"]):
        return _value_of(number)
    bare = _TEXT.sub(" ", plain)
    words = _WORD.findall(_MACRO.sub(" ", bare))
    if (
        not all(map(_OF_MATHEMATICS.fullmatch, words))
        or _CHOICE.fullmatch(plain)
        or (_TEXT.search(plain) and not bare.strip())
    ):
        return ParsedAnswer("words")
    is_variable = number is not None and number["unit"] in _VARIABLES
    if _OPERATOR.search(plain) or _LIST.fullmatch(plain) or is_variable:
        return ParsedAnswer("expression")
    return UNREADABLE


def read_number(text: str) -> Fraction | None:
    """Return the first number in a running text as an exact fraction, or None.

    It reads decimals (`.5`, `5.`), fractions (`2/5`), powers (`1.2e-06`) and a minus (`-`, `−`, a
    hyphen or en dash; before or after a currency sign). Commas between digits are removed, whatever
    they group (`1,234`, `12,34`). Currency and percent signs are ignored, so `50%` is 50, as in the
    answers of GSM8K. A dash that is followed by a blank is not part of the number (`- 5` is 5: an
    item of a list). The result is None for a division by zero, for more than 1,000 characters, and
    for powers of ten beyond 999.
    """
    match = _NUMBER.search(normalize_text(text))
    if match is None or len(match.group()) > _LONGEST or _exponent_too_large(match["power"]):
        return None
    value = _to_fraction(match["above"])
    if match["below"]:
        below = _to_fraction(match["below"])
        if below == 0:
            return None
        value /= below
    return -value if match["sign"] or match["inner"] else value


def canonical_form(text: str) -> str:
    """Return an answer without separators between thousands and in ASCII digits, if it is a number.

    Only a number without a unit is changed (`9{,}500` becomes `9500`); every other text stays.
    """
    if _SIMPLE.fullmatch(text):
        return text
    plain = normalize_text(text)
    if not _BARE.fullmatch(plain) or read_answer(text).kind != "number":
        return text
    return _without_separators(plain)


def plain_number(value: Decimal) -> str:
    """Write a number exactly, in digits only: 2e-05 is `0.00002`, 18.0 is `18`, 2.50 stays `2.50`.

    A number with a thousand digits or more, which only hostile data contains, keeps its exponent.
    """
    if not value.is_finite() or abs(value.adjusted()) > 999:
        return str(value)
    if value == value.to_integral_value():
        return str(int(value))
    return f"{value:f}"


def normalize_text(text: str) -> str:
    """Return a text in NFKC with ASCII digits, and with commas for other thousands separators.

    `3½` becomes `3 1/2` and `x²` becomes `x^2`, where NFKC alone would make other numbers of them.
    """
    if _ORDINARY.fullmatch(text):
        return text
    text = _SEPARATED.sub(lambda found: re.sub(_SEPARATOR, ",", found.group()), text)
    if text.isascii():
        return text
    letters = (_normalize_character(text[at], text[at - 1 : at]) for at in range(len(text)))
    return unicodedata.normalize("NFKC", "".join(letters)).translate(_OTHER_SIGNS)


def _normalize_character(sign: str, before: str) -> str:
    if sign.isascii():
        return sign
    form = unicodedata.decomposition(sign).partition(" ")[0]
    if form == "<super>" and unicodedata.normalize("NFKC", sign).isdecimal():
        return f"^{sign}"
    if form == "<fraction>" and before.isdecimal():
        return f" {sign}"
    return str(unicodedata.decimal(sign)) if sign.isdecimal() else sign


def _strip_formula(text: str) -> str:
    """Return a formula without its delimiters: `$...$`, `\\boxed{...}`, a full stop at the end."""
    while True:
        found = next((m for form in _FORMULA_FORMS if (m := form.fullmatch(text))), None)
        inner = found and found[1].strip()
        if not inner or not _has_balanced_braces(inner):
            return text
        text = inner


def _has_balanced_braces(text: str) -> bool:
    depth = 0
    for sign in text:
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    return depth == 0


def _is_unit(unit: str) -> bool:
    unit = _TEXT.sub(lambda found: found[1], unit).replace("\\ ", " ").replace("\\,", " ").strip()
    if not unit:
        return True
    words = re.split(r"[\s/-]+", unit.lower().rstrip("."))
    return (
        bool(_UNIT.fullmatch(unit))
        and not any(map(_NO_UNIT.fullmatch, words))
        and unit.rstrip(".") not in _VARIABLES
    )


def _value_of(number: re.Match[str]) -> ParsedAnswer:
    if _exponent_too_large(number["power"]):
        return UNREADABLE
    if number["whole"]:
        part, parts = int(number["part"]), int(number["parts"])
        if part >= parts:
            return UNREADABLE
        value = int(number["whole"]) + Fraction(part, parts)
    else:
        value = _to_fraction(_without_separators(number["above"]))
        value *= Fraction(10) ** int(number["power"] or 0)
        below = _to_fraction(_without_separators(number["below"] or "1"))
        if below == 0:
            return UNREADABLE
        value /= below
    negative = number["inner"] or number["sign"] not in (None, "+")
    return ParsedAnswer("number", -value if negative else value)


def _without_separators(number: str) -> str:
    plain = number.replace(",", "").replace(" ", "")
    return plain.replace(".", "") if plain.count(".") > 1 else plain


def _exponent_too_large(power: str | None) -> bool:
    return power is not None and abs(int(power)) > _HIGHEST_POWER


def _to_fraction(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
