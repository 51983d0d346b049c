"""The words of the system: what an example is, and the letters used for tensor shapes.

Shapes, everywhere in this package:

    B  batch                     L  layers                H  key/value heads
    Q  question tokens           d  hidden size           D  head size
    C  reasoning tokens          M  latent tokens         T  Jacobi iterations
    A  answer-segment tokens     S  columns of a cache
"""

from __future__ import annotations

from dataclasses import dataclass, field

ANSWER_PROMPT = "The answer is:"


@dataclass(frozen=True)
class Example:
    """One problem: a question, its written reasoning steps in order, and its answer.

    `steps` may be empty. `answer` is text, usually a number without thousands separators.
    `id` is unique within a data set and follows the example into the predictions file.
    """

    id: str
    question: str
    steps: tuple[str, ...]
    answer: str
    extra: dict[str, str] = field(default_factory=dict, compare=False)
