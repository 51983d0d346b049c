"""The questions to choose from, and checks of a question before it is answered."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from kava.data.tasks import load_task
from kava.errors import KavaError
from kava.evaluation.command import task_options
from kava.reasoning.context_window import LETTERS_PER_TOKEN
from kava.reasoning.reasoner import Reasoner
from kava.recipe.schema import Recipe
from kava.system.text import check_text
from kava.types import Example


@dataclass(frozen=True)
class PageLimits:
    """Maximum numbers of tokens: `question_tokens` in a question, `new_tokens` in an answer."""

    question_tokens: int = 1024
    new_tokens: int = 256


@dataclass(frozen=True)
class Questions:
    """Examples to choose from; there may be none."""

    examples: Sequence[Example] = field(default_factory=tuple)

    @property
    def labels(self) -> list[str]:
        """Label of each example: its number of steps, if known, and its first words."""
        return [
            f"{i}. {_steps(example)}{textwrap.shorten(example.question, 36, placeholder=' …')}"
            for i, example in enumerate(self.examples, start=1)
        ]

    @property
    def default(self) -> str:
        """The question shown at the start: the one with the most steps; "" if there is none."""
        longest = max(self.examples, key=lambda example: len(example.steps), default=None)
        return longest.question if longest else ""

    def gold(self, question: str) -> str | None:
        """Return the correct answer if the question is one of the examples, else None."""
        known = {example.question: example.answer for example in self.examples}
        return known.get(question.strip())


def example_questions(
    recipe: Recipe, task: str | None, file: str | None, count: int = 10
) -> Questions:
    """Return the first examples of a task.

    Without a task, return generated problems for a model trained on them, and none for other
    models.

    Raises:
        KavaError: a file without a task, an unknown task, or examples that cannot be loaded.
    """
    if task is None and file is not None:
        raise KavaError(
            "demo: --file contains the rows of a task; name the task with --task",
            code="demo.file-without-task",
            key="--file",
        )
    if task is None and recipe.data.train != "synthetic":
        return Questions()
    name = task or "synthetic"
    options = task_options(recipe, name, {})
    return Questions(load_task(name, file=file, limit=count, options=options).examples)


def check(reasoner: Reasoner, question: str, most: int) -> None:
    """Check a question: raise a KavaError if it is empty, broken, or longer than `most` tokens."""
    if not question.strip():
        raise KavaError(
            "The question is empty. Enter a question or choose an example.",
            code="demo.empty-question",
            key="question",
        )
    check_text(question, "The question")
    short = len(question) <= most * LETTERS_PER_TOKEN
    tokens = len(reasoner.encoder.question(question)) if short else None
    if tokens is None or tokens > most:
        has = f"{tokens:,} tokens" if tokens else f"{len(question):,} characters"
        raise KavaError(
            f"The question is too long: {has}; the limit is {most:,} tokens.",
            code="demo.question-too-long",
            key="question",
        )


def _steps(example: Example) -> str:
    count = len(example.steps)
    return f"{count} step{'s' if count > 1 else ''}: " if count else ""
