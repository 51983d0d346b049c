"""What comes out at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kava.methods._base import Thinking


@dataclass(frozen=True)
class Answer:
    """One answered question.

    text: everything the model wrote, the answer prompt included.
    forward_passes: sequential backbone calls from the end of the question's prefill to the end of
        the answer (spec, Evaluation). generated_tokens includes EOS.
    finished: false where `max_new_tokens` or the backbone's positions cut it off.
    """

    text: str
    forward_passes: int
    prefill_passes: int
    generated_tokens: int
    finished: bool


class Generated(NamedTuple):
    """Texts of answers and what was thought before them.

    text: what `Reasoner.generate` gives without the thoughts.
    thinking: of all questions together, one row each.
    """

    text: str | list[str] | list[list[str]]
    thinking: Thinking
