"""`kava ask`: one question, one answer, and what was thought in between."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rich.console import Console

from kava.errors import KavaError
from kava.evaluate.runner import answer_batch
from kava.model import Reasoner

TOP = 5


@dataclass(frozen=True)
class Settings:
    """How to ask. `num_iterations` None is the recipe's."""

    show_thoughts: bool = False
    num_iterations: int | None = None
    max_new_tokens: int = 256


def answer_one(reasoner: Reasoner, question: str, settings: Settings, console: Console) -> None:
    """Print the answer, the forward passes and the milliseconds.

    Raises:
        KavaError: the question is empty.
    """
    if not question.strip():
        raise KavaError("ask: the question is empty")
    begin = time.perf_counter()
    answer = answer_batch(reasoner, [question], settings.max_new_tokens, settings.num_iterations)[0]
    elapsed = 1000 * (time.perf_counter() - begin)
    console.print(answer.text.strip(), highlight=False, markup=False)
    cut = "" if answer.finished else f", cut off at {settings.max_new_tokens} new tokens"
    console.print(
        f"{answer.forward_passes} forward passes, {elapsed:.0f} ms{cut}",
        highlight=False,
        style="dim",
    )
    if settings.show_thoughts:
        show_thoughts(reasoner, question, settings, console)


def answer_stream(
    reasoner: Reasoner, lines: Iterable[str], settings: Settings, console: Console
) -> None:
    """Answer each line; an empty one is skipped. On a terminal, a prompt is shown."""
    if sys.stdin.isatty():
        console.print("one question per line; end with Ctrl-D", style="dim")
    for line in lines:
        if line.strip():
            answer_one(reasoner, line.strip(), settings, console)


def show_thoughts(reasoner: Reasoner, question: str, settings: Settings, console: Console) -> None:
    """The likeliest tokens of each latent after the last iteration, with probabilities."""
    decoded = decode_latents(reasoner, question, settings.num_iterations)
    if not decoded:
        console.print(f"method '{reasoner.recipe.method}' thinks in no latent tokens")
    for number, tokens in enumerate(decoded, start=1):
        words = "  ".join(f"{word!r} {probability:.2f}" for word, probability in tokens)
        console.print(f"latent {number:2d}  {words}", highlight=False, markup=False)


@torch.no_grad()
def decode_latents(
    reasoner: Reasoner, question: str, num_iterations: int | None = None
) -> list[list[tuple[str, float]]]:
    """Each latent's state read by the language-model head: its five likeliest tokens."""
    states = reasoner.think([question], num_iterations).latent_states
    if states is None:
        return []
    scores = reasoner.logits(states[0]).float()
    scores[:, reasoner.unreadable_ids] = -torch.inf
    best = scores.softmax(-1).topk(TOP, dim=-1)
    return [
        [(reasoner.tokenizer.decode([i]), p) for i, p in zip(ids, chances, strict=True)]
        for ids, chances in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
