"""The command `kava ask`: answer a question, and show what the latents decode to."""

import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from kava.errors import KavaError
from kava.inference import compressed
from kava.inspect.decoded import decode_latents
from kava.reasoning import context_window
from kava.reasoning.context_window import max_positions
from kava.reasoning.reasoner import Reasoner
from kava.recipe.load import parse
from kava.system.text import check_text


@dataclass(frozen=True)
class Settings:
    """Settings for answering a question.

    num_iterations: T, or `auto`; None is the recipe's value.
    compress: how to compress the KV cache; None leaves it unchanged.
    """

    show_thoughts: bool = False
    num_iterations: int | Literal["auto"] | None = None
    max_new_tokens: int = 256
    compress: compressed.Plan | None = None


_SETTING = re.compile(r"[a-z_]+=\S+")


def read_words(
    words: Sequence[str], compress: str | None
) -> tuple[list[str], compressed.Plan | None]:
    """Split the words of the command line into run and question, and the settings of `--compress`.

    A setting is a single word such as budget=128; without `--compress` there are none.

    Raises:
        KavaError: an unknown eviction or setting, an invalid value, or too many words.
    """
    settings = [word for word in words if compress and _SETTING.fullmatch(word)]
    others = [word for word in words if word not in settings]
    if len(others) > 2:
        raise KavaError(
            f"ask: unexpected argument {' '.join(others[2:])!r}; pass a run folder and one "
            "question, in quotes (settings of --compress have the form key=value)",
            code="inspect.too-many-words",
            key=others[2],
        )
    if compress is None:
        return others, None
    values = {key: _value(text) for key, _, text in (word.partition("=") for word in settings)}
    return others, compressed.plan(compress, **values)


def _value(text: str) -> Any:
    try:
        return parse(text, "ask")
    except KavaError:
        return text


def check_question(reasoner: Reasoner, question: str, settings: Settings) -> None:
    """Check everything about a question that can be wrong, before anything is printed.

    Raises:
        KavaError: the question is empty, is not valid Unicode, or is too long for the backbone; or
            the method does not iterate, and a number of iterations is set.
    """
    if not question.strip():
        raise KavaError("ask: the question is empty", code="inspect.empty-question", key="question")
    if settings.num_iterations is not None:
        reasoner.check_iterations(settings.num_iterations)
    check_text(question, "the question")
    context_window.check(reasoner, reasoner.encoder.questions([question]))


def answer_one(reasoner: Reasoner, question: str, settings: Settings, console: Console) -> None:
    """Print the answer, the number of forward passes and the milliseconds.

    Raises:
        KavaError: see `check_question`.
    """
    check_question(reasoner, question, settings)
    plan, tokens = settings.compress, settings.max_new_tokens
    begin = time.perf_counter()
    with compressed.compressed(reasoner.lm, plan) if plan else nullcontext() as log:
        answer = reasoner.answer(reasoner.think(question, settings.num_iterations), tokens)[0]
    elapsed = 1000 * (time.perf_counter() - begin)
    console.print(answer.text.strip(), highlight=False, markup=False)
    cut = "" if answer.finished else f", cut off at {answer.generated_tokens} new tokens"
    if cut and answer.generated_tokens < tokens:
        cut += f", where the backbone's {max_positions(reasoner)} positions end"
    cache = (
        f", cache: at most {log.peak_columns} columns of {log.uncompressed_columns}" if log else ""
    )
    console.print(
        f"{answer.forward_passes} forward passes, {elapsed:.0f} ms{cut}{cache}",
        highlight=False,
        style="dim",
    )
    if settings.show_thoughts:
        show_thoughts(reasoner, question, settings, console)


def answer_stream(
    reasoner: Reasoner, lines: Iterable[str], settings: Settings, console: Console
) -> None:
    """Answer each line of the input; empty lines are skipped. On a terminal, a prompt is shown.

    Raises:
        KavaError: see `answer_one`; the line's number is added, and earlier answers were printed.
    """
    if sys.stdin.isatty():
        console.print("one question per line; end with Ctrl-D", style="dim")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                answer_one(reasoner, line.strip(), settings, console)
            except KavaError as error:
                raise error.with_location(f"ask: line {number} of the input") from None


def show_thoughts(reasoner: Reasoner, question: str, settings: Settings, console: Console) -> None:
    """Print the likeliest tokens of each latent after the last iteration, with probabilities."""
    decoded = decode_latents(reasoner, question, settings.num_iterations)
    if not decoded:
        console.print(f"method '{reasoner.recipe.method}' does not use latent tokens")
    for number, tokens in enumerate(decoded, start=1):
        words = "  ".join(f"{word!r} {probability:.2f}" for word, probability in tokens)
        console.print(f"latent {number:2d}  {words}", highlight=False, markup=False)
