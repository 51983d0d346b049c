"""Questions in the form of ProntoQA, generated without a download (Saparov and He, 2210.01240).

A question has the rules of a made-up ontology in random order, a fact, and a statement to judge:

    Every wumpus is a yumpus. Yumpuses are not shy. Each yumpus is a lorpus. Lorpuses are red.
    Every dumpus is not red. Max is a wumpus. True or false: Max is red.

    Max is a wumpus. / Every wumpus is a yumpus. / Max is a yumpus. / ...     answer: True

The concepts form a chain, of which `hops` rules lead to the property in question. A rule about a
concept that Max is not (dumpus) states the opposite, so that the property alone does not tell the
answer. Half of the statements are true. The words are ours; the form is that of the authors, with
the names of concepts drawn anew for each question.
"""

import hashlib
import random
from itertools import pairwise
from typing import Literal

from kava.types import Example

Split = Literal["train", "validation", "test"]

NAMES = ("Max", "Rex", "Sam", "Fae", "Wren", "Stella", "Sally", "Alex")
CONCEPTS = tuple(f"{first}{last}" for first in "bdfgjklmnrstvwyz" for last in ("umpus", "orpus"))
PROPERTIES = (
    "red", "blue", "shy", "loud", "small", "bright", "cold", "sour", "kind", "opaque", "wooden",
    "fruity",
)  # fmt: skip
_RULES = ("Every {a} is {b}.", "Each {a} is {b}.", "All {a}es are {c}.", "{A}es are {c}.")
#: Tenths of the questions.
_SHARES = {"test": (0,), "validation": (1,), "train": tuple(range(2, 10))}


def generate(split: Split, count: int, seed: int = 0, hops: int = 3) -> list[Example]:
    """Generate `count` different questions of a split; those of two splits are never the same.

    Args:
        hops: number of rules from the fact to the property, from 1 to 8.

    Raises:
        ValueError: if the split is unknown or a number is out of range.
    """
    if split not in _SHARES:
        raise ValueError(f"split must be one of {', '.join(_SHARES)}, not '{split}'")
    if not isinstance(hops, int) or not 1 <= hops <= 8:
        raise ValueError(f"hops must be from 1 to 8, not {hops!r}")
    draw = random.Random(f"{split} {seed}")
    found: dict[str, Example] = {}
    while len(found) < count:
        question, steps, answer = _problem(draw, hops)
        tenth = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10
        if tenth in _SHARES[split] and question not in found:
            name = f"prontoqa-{split}-{len(found)}"
            found[question] = Example(name, question, tuple(steps), answer)
    return list(found.values())


def _problem(draw: random.Random, hops: int) -> tuple[str, list[str], str]:
    name, (*chain, beyond, other) = draw.choice(NAMES), draw.sample(CONCEPTS, hops + 2)
    asked, *others = draw.sample(PROPERTIES, hops + 1)
    holds, says = draw.random() < 0.5, draw.random() < 0.5
    links = [_rule(draw, a, b, True, noun=True) for a, b in pairwise(chain)]
    last = _rule(draw, chain[-1], asked, holds)
    rules = [*links, last, _rule(draw, other, asked, not holds)]
    rules.append(_rule(draw, chain[-1], beyond, True, noun=True))
    rules += [_rule(draw, a, b, draw.random() < 0.5) for a, b in zip(chain, others, strict=False)]
    draw.shuffle(rules)
    facts = [f"{name} is a {concept}." for concept in chain]
    steps = [facts[0]]
    for rule, fact in zip([*links, last], [*facts[1:], _fact(name, asked, holds)], strict=True):
        steps += [rule, fact]
    question = f"{' '.join(rules)} {facts[0]} True or false: {_fact(name, asked, says)}"
    return question, steps, str(holds == says)


def _rule(draw: random.Random, a: str, b: str, holds: bool, noun: bool = False) -> str:
    negation = "" if holds else "not "
    one, many = (f"a {b}", f"{b}es") if noun else (b, b)
    return draw.choice(_RULES).format(a=a, A=a.capitalize(), b=negation + one, c=negation + many)


def _fact(name: str, what: str, holds: bool) -> str:
    return f"{name} is {'' if holds else 'not '}{what}."
