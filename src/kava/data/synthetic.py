"""Small word problems in the style of GSM8k-Aug, generated without a download or a licence.

A problem describes a week. The question says what came on Monday, and each further day follows from
the day before by one operation:

    Wednesday and Tuesday brought 9 together. Tuesday brought 3 more than Monday. Monday brought
    Ann 4 pens. How many pens did Wednesday bring Ann?       <<4+3=7>> <<9-7=2>>   answer 2

These properties make it a fair test of reasoning that is not written out:

- The facts are shuffled, so from two steps on they are never told in the order in which they are
  needed.
- `9 together` flips the sign of everything before it and `twice` doubles it, so adding up the
  numbers of the question in any order does not give the answer.
- Each new value is drawn uniformly, and only then the operation that leads to it, so every
  answer from 1 to `max_value` is equally frequent.
- A stable hash of the problem decides its split. Names, things and the order of the facts are
  excluded from that hash, so a test problem is never a reworded training problem.
"""

import hashlib
import random
from typing import Literal, get_args

from kava.data import _sentences as sentences
from kava.data._steps import DAYS, NAMES, THINGS, Step, noun
from kava.types import Example

Split = Literal["train", "validation", "test"]
Form = Literal["equation", "natural", "sentences"]

_SHARES = {"test": (0,), "validation": (1,), "train": tuple(range(2, 10))}  # tenths of the problems
_PATIENCE = 20_000  # failed draws in a row after which a request counts as impossible


def generate(
    split: Split,
    count: int,
    seed: int = 0,
    *,
    form: Form = "equation",
    min_steps: int = 1,
    max_steps: int = 5,
    max_value: int = 9,
    distractors: int = 0,
) -> list[Example]:
    """Generate `count` different problems of a split.

    The same arguments give the same problems on every machine. The number of steps cycles from
    `min_steps` to `max_steps`, so each number of steps has the same share of any range of rows.
    Problems of different splits differ in their numbers or operations, whatever the seeds. Problems
    with one step are the exception: only about a hundred exist, so they differ only in their
    wording.

    Args:
        split: "train", "validation" or "test".
        count: number of problems.
        seed: another seed gives another sample of the same split.
        form: how steps are written: `<<4+3=7>>` ("equation", as in GSM8k-Aug),
            `Tuesday brought 4+3=7 pens.` ("natural", as in GSM8k-Aug-NL), or full sentences in
            varied words, most of which the answer does not need ("sentences"; see
            `kava.data._sentences`). The questions are the same in every form.
        min_steps, max_steps: smallest and largest number of operations in a problem.
        max_value: every number in the question or in a step lies in 1..max_value.
        distractors: number of days told after the one asked about, which the answer does not need.

    Returns:
        Examples with ids such as `synthetic-test-17`.

    Raises:
        ValueError: if the split or form is unknown, a bound is out of range, a problem has more
            days than a week, or the split does not contain `count` problems.
    """
    _check(split, count, form, min_steps, max_steps, max_value, distractors)
    rng = random.Random(f"{split}/{seed}")  # a string seed hashes the same on every machine
    questions: set[str] = set()
    examples = []
    for index in range(count):
        steps = min_steps + index % (max_steps - min_steps + 1)
        for _ in range(_PATIENCE):
            chain = _draw_chain(rng, steps, max_value)
            if steps > 1 and _split_of(canonical_equations(chain)) != split:
                continue
            question, written = _write_problem(rng, chain, form, max_value, distractors)
            # The few problems with one step occur in every split; their wording decides.
            if question not in questions and (steps > 1 or _split_of(question) == split):
                break
        else:
            raise ValueError(
                f"the {split} split has only about {len(questions)} problems with {min_steps} to "
                f"{max_steps} steps and values up to {max_value}, fewer than the {count} requested"
            )
        questions.add(question)
        answer = str(chain[-1].after)
        examples.append(Example(f"synthetic-{split}-{index}", question, written, answer))
    return examples


def canonical_equations(chain: list[Step]) -> str:
    """Return a problem's equations, `4+3=7 9-7=2`, which do not depend on its wording."""
    return " ".join(step.equation for step in chain)


def vocabulary(max_value: int = 9) -> list[str]:
    """Return every word, number and sign used in questions, answers and the two short forms.

    Numbers are whole words. Together with `The answer is:`, this is all that a word-level tokenizer
    for these problems needs; blanks carry no information.
    """
    signs = [".", "?", "<<", ">>", "+", "-", "*", "="]
    words = ["brought", "bring", "more", "fewer", "than", "and", "together"]
    words += ["twice", "as", "many", "How", "did"]
    nouns = [noun(number, thing) for thing in THINGS for number in (1, 2)]
    return [*signs, *map(str, range(1, max_value + 1)), *words, *DAYS, *NAMES, *nouns]


def _check(split, count, form, min_steps, max_steps, max_value, distractors) -> None:
    days = max_steps + 1 + distractors
    for true, words in (
        (split in _SHARES, f"split must be one of {sorted(_SHARES)}, not {split!r}"),
        (form in get_args(Form), f"form must be one of {sorted(get_args(Form))}, not {form!r}"),
        (count >= 0 and distractors >= 0, "count and distractors must not be negative"),
        (1 <= min_steps <= max_steps, "1 <= min_steps <= max_steps must hold"),
        (max_value >= 4, f"max_value must be at least 4, not {max_value}"),
        (days <= len(DAYS), f"max_steps + distractors must not exceed {len(DAYS) - 1}"),
    ):
        if not true:
            raise ValueError(words)


def _split_of(text: str) -> str:
    """Return the split of a text, by a hash that is the same for every seed and Python version."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    residue = int.from_bytes(digest, "big") % 10
    return next(split for split, residues in _SHARES.items() if residue in residues)


def _draw_chain(rng: random.Random, steps: int, max_value: int) -> list[Step]:
    """Draw a chain of steps, each starting from the value that the one before it leads to."""
    chain = [_draw_step(rng, rng.randint(1, max_value), max_value)]
    while len(chain) < steps:
        chain.append(_draw_step(rng, chain[-1].after, max_value))
    return chain


def _draw_step(rng: random.Random, before: int, max_value: int) -> Step:
    """Draw a new value, different from the old one, then one of the operations that lead to it."""
    after = rng.randint(1, max_value - 1)
    after += after >= before
    steps = [Step("more" if after > before else "fewer", abs(after - before), before, after)]
    if before + after <= max_value:
        steps.append(Step("together", before + after, before, after))
    if after == 2 * before:
        steps.append(Step("twice", 2, before, after))
    return rng.choice(steps)


def _write_problem(
    rng: random.Random, chain: list[Step], form: Form, max_value: int, distractors: int
) -> tuple[str, tuple[str, ...]]:
    """Put a problem into words; return the question and its chain of thought."""
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    start, last_day = chain[0].before, DAYS[len(chain)]
    week = list(chain)
    for _ in range(distractors):
        week.append(_draw_step(rng, week[-1].after, max_value))
    facts = [f"{DAYS[0]} brought {name} {start} {noun(start, things)}."]
    facts += [step.to_text(DAYS[i + 1], DAYS[i]) for i, step in enumerate(week)]
    facts_in_order = [facts[i] for i in _draw_order(rng, len(chain) + 1, distractors)]
    question = " ".join([*facts_in_order, f"How many {things} did {last_day} bring {name}?"])
    if form == "equation":
        return question, tuple(f"<<{step.equation}>>" for step in chain)
    if form == "sentences":
        return question, sentences.write(chain, question, name, things)
    return question, tuple(
        f"{day} brought {step.equation} {noun(step.after, things)}."
        for day, step in zip(DAYS[1:], chain, strict=False)
    )


def _draw_order(rng: random.Random, needed: int, spare: int) -> list[int]:
    """Draw an order of the facts in which those that the answer needs are not sorted.

    The first `needed` facts are needed for the answer, in the order 0, 1, 2 ...; `spare` facts are
    not.
    """
    order = list(range(needed + spare))
    while True:
        rng.shuffle(order)
        in_chain = [i for i in order if i < needed]
        if needed < 3 or in_chain != sorted(in_chain):  # a single step may be told in either order
            return order
