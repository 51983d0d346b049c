"""Word problems from templates of GSM8K's test questions, made by the package reasoning-gym.

Each problem has a worked solution in sentences, whose lines are the steps. The templates and the
code that fills them in are those of reasoning-gym (Stojanovski et al., arXiv:2505.24760; licence
Apache-2.0) after GSM-Symbolic (Mirzadeh et al., arXiv:2410.05229). This needs the extra `gym`.

The templates were made from test questions of GSM8K, so a model that was trained on these problems
must not be scored on GSM8K or its variants: `RELATED_TASKS`, which `kava eval` and the leak check
name.
"""

import hashlib
import random
import re
from typing import Any, Literal

from kava.data import _gym
from kava.types import Example

Split = Literal["train", "validation", "test"]
Templates = Literal["seen", "unseen"]

RELATED_TASKS = ("gsm8k", "gsm8k_aug", "gsm8k_platinum", "gsm_hard", "gsm_plus")
#: Templates whose solution ends in another number than their answer (reasoning-gym 0.1.25).
_WRONG = {25, 27, 84, 89}
#: Never trained on, so that a test on them asks for problems of a new kind. Chosen at random.
UNSEEN = frozenset({0, 13, 15, 28, 30, 43, 56, 59, 68, 70, 71, 80, 81, 83, 88})
#: Tenths of the problems, by a hash of the question.
_SHARES = {"test": (0,), "validation": (1,), "train": tuple(range(2, 10))}
_PATIENCE = 20_000  # problems in a row that were not wanted, after which there are no more
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def generate(
    split: Split,
    count: int,
    seed: int = 0,
    *,
    templates: Templates = "seen",
    num_templates: int | None = None,
    max_number: int | None = None,
) -> list[Example]:
    """Generate `count` different problems of a split; no question is in two splits.

    The number of the template is in `extra` of each example.

    Args:
        split: "train", "validation" or "test".
        count: number of problems.
        seed: another seed gives another sample of the same split.
        templates: "seen", the 66 templates of every split, or "unseen", 15 others, for the test
            split alone.
        num_templates: use only the first templates, by their number.
        max_number: use only problems without a larger number in question, steps and answer.

    Raises:
        KavaError: if reasoning-gym is not installed.
        ValueError: if an option is out of range, or there are not `count` such problems.
    """
    if split not in _SHARES:
        raise ValueError(f"split must be one of {', '.join(_SHARES)}, not '{split}'")
    if templates == "unseen" and split != "test":
        raise ValueError("unseen templates are for the test split alone")
    if templates not in ("seen", "unseen"):
        raise ValueError(f"templates must be 'seen' or 'unseen', not '{templates}'")
    makers = _gym.gsm_symbolic_generators()
    usable = sorted(set(makers) - _WRONG)
    chosen = [one for one in usable if (one in UNSEEN) == (templates == "unseen")]
    if num_templates is not None and not 1 <= num_templates <= len(chosen):
        raise ValueError(f"num_templates must be from 1 to {len(chosen)}, not {num_templates!r}")
    chosen = chosen[:num_templates]
    draw = random.Random(f"gsm_symbolic/{split}/{seed}")
    found: dict[str, Example] = {}
    for _ in range(count):
        for _ in range(_PATIENCE):
            template = draw.choice(chosen)
            # Each problem has a generator of its own: how much one draws does not move the next.
            entry = makers[template](random.Random(draw.getrandbits(64)), 1.0)
            question, steps, answer = _read(entry)
            fits = max_number is None or _largest(question, *steps, answer) <= max_number
            tenth = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10
            if fits and question not in found and tenth in _SHARES[split]:
                break
        else:
            raise ValueError(
                f"the {split} split has only about {len(found)} such problems, fewer than the "
                f"{count} requested"
            )
        name = f"gsm-symbolic-{split}-{len(found)}"
        found[question] = Example(name, question, steps, answer, {"template": str(template)})
    return list(found.values())


def _read(entry: dict[str, Any]) -> tuple[str, tuple[str, ...], str]:
    """Return the question, the lines of the solution before `####`, and the answer."""
    *lines, last = entry["metadata"]["answer_cot"].splitlines()
    answer = entry["answer"].replace(",", "")
    if last.removeprefix("####").strip().replace(",", "") != answer:
        raise ValueError(
            f"reasoning-gym gives a solution that ends in '{last}' for the answer {answer}; use "
            "version 0.1.25, which kava was tested with"
        )
    return entry["question"].strip(), tuple(line.strip() for line in lines if line.strip()), answer


def _largest(*texts: str) -> float:
    numbers = (float(n.replace(",", "")) for text in texts for n in _NUMBER.findall(text))
    return max(numbers, default=0)
