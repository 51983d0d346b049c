"""Steps of generated problems as full sentences, of which the answer needs few tokens.

GSM8k-Aug-NL's steps are sentences of which most words are not needed for the answer. That is the
case in which a compressed cache could pay: these sentences have 15 to 30 words, numbers and signs,
in several wordings and with varying remarks, and one equation each:

    It was raining, and Monday gave Ann 4 pens and Tuesday 3 more, which makes 4+3=7 pens.

The wording is drawn from a hash of the question, so it neither changes the questions nor depends
on other rows.
"""

import random
from collections.abc import Sequence

from kava.data._steps import DAYS, Step, noun

#: Remarks that may open a sentence; none of them matters for the answer.
REMARKS = (
    "",
    "As we read, ",
    "It was raining, and ",
    "Without any help, ",
    "Later that week, ",
    "To go on, ",
    "After a good breakfast, ",
)
#: How each kind of step is told; each ends with its equation and the things that it counts.
WORDINGS = {
    "more": (
        "{eve} gave {name} {before} and {day} {number} more, which makes {equation}.",
        "with {number} more than the {before} of {eve}, {day} brought {name} {equation}.",
    ),
    "fewer": (
        "{eve} gave {name} {before} but {day} {number} fewer, which leaves {equation}.",
        "with {number} fewer than the {before} of {eve}, {day} brought {name} {equation}.",
    ),
    "together": (
        "both days gave {name} {number}, {before} of them on {eve}, so {day} has {equation}.",
        "of the {number} of both days {eve} brought {before}, which leaves {day} {equation}.",
    ),
    "twice": (
        "{eve} gave {name} {before} and {day} twice as many, which makes {equation}.",
        "with two times the {before} of {eve}, {day} brought {name} {equation}.",
    ),
}


def write(chain: Sequence[Step], question: str, name: str, things: str) -> tuple[str, ...]:
    """Return one sentence for each step; the same question always gives the same sentences."""
    rng = random.Random(question)
    return tuple(
        _sentence(rng, step, eve, day, name, things)
        for step, eve, day in zip(chain, DAYS, DAYS[1:], strict=False)
    )


def _sentence(rng: random.Random, step: Step, eve: str, day: str, name: str, things: str) -> str:
    text = rng.choice(REMARKS) + rng.choice(WORDINGS[step.kind]).format(
        eve=eve,
        day=day,
        name=name,
        before=f"{step.before} {noun(step.before, things)}",
        number=step.number,
        equation=f"{step.equation} {noun(step.after, things)}",
    )
    return text[0].upper() + text[1:]
