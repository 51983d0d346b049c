"""Training methods. One file each; the file's name is the method's name in a recipe.

What a method is made of is imported from here: the two base classes, the pieces of a training
step, and the passes that its equations need at the least.
"""

from __future__ import annotations

from kava.reasoning.answers import ReasoningResult
from kava.reasoning.methods._base import (
    Batch,
    Curriculum,
    LatentMethod,
    Method,
    TeacherOutput,
    Terms,
    Uniform,
    label_loss,
    prefill_question,
    prompt_ids,
    student_suffix,
    teacher_forward,
)
from kava.reasoning.methods._work import Call, Work, chain, lengths, one_by_one, refined
from kava.recipe import registry

__all__ = [
    "Batch",
    "Call",
    "Curriculum",
    "LatentMethod",
    "Method",
    "ReasoningResult",
    "TeacherOutput",
    "Terms",
    "Uniform",
    "Work",
    "chain",
    "label_loss",
    "label_of",
    "lengths",
    "one_by_one",
    "paper_of",
    "prefill_question",
    "prompt_ids",
    "refined",
    "student_suffix",
    "teacher_forward",
]


def label_of(name: str) -> str:
    """What tables, plots and cards call a method; its name where it is unknown or says nothing."""
    return _own(name, "label") or name


def paper_of(name: str) -> str | None:
    """The arXiv number of a method's paper, None where there is none."""
    return _own(name, "paper")


def _own(name: str, attribute: str) -> str | None:
    """What a method's own class says, not the one that it extends."""
    if name not in registry.names("methods"):
        return None
    return vars(registry.find("methods", name)).get(attribute)
