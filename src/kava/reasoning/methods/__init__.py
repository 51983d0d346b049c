"""Training methods, one file for each; the file name is the method's name in a recipe.

A new method imports its parts from here: the two base classes, the building blocks of a training
step, and the functions that count the forward passes its equations require.
"""

from kava.reasoning.answers import ReasoningResult
from kava.reasoning.methods._base import (
    Batch,
    Curriculum,
    LatentMethod,
    LossTerms,
    Method,
    TeacherOutput,
    Uniform,
    eot_suffix,
    label_loss,
    latent_embeds,
    prefill_question,
    prompt_ids,
    student_suffix,
    teacher_forward,
)
from kava.reasoning.methods._work import (
    ForwardPass,
    Work,
    consecutive_passes,
    lengths,
    parallel_passes,
    sequential_passes,
)
from kava.recipe import registry

__all__ = [
    "Batch",
    "Curriculum",
    "ForwardPass",
    "LatentMethod",
    "LossTerms",
    "Method",
    "ReasoningResult",
    "TeacherOutput",
    "Uniform",
    "Work",
    "consecutive_passes",
    "eot_suffix",
    "label_loss",
    "label_of",
    "latent_embeds",
    "lengths",
    "paper_of",
    "parallel_passes",
    "prefill_question",
    "prompt_ids",
    "sequential_passes",
    "student_suffix",
    "teacher_forward",
]


def label_of(name: str) -> str:
    """Return the label of a method in tables, plots and model cards.

    This is the method's name if the method is unknown or defines no label.
    """
    return _class_attribute(name, "label") or name


def paper_of(name: str) -> str | None:
    """Return the arXiv number of a method's paper, or None if it has none."""
    return _class_attribute(name, "paper")


def _class_attribute(name: str, attribute: str) -> str | None:
    """Return an attribute of the method's own class, ignoring the classes it inherits from."""
    if name not in registry.names("methods"):
        return None
    return vars(registry.find("methods", name)).get(attribute)
