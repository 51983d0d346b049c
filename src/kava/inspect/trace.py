"""The chain of thought of a question: given, or written by the model itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kava.backbones.masked_cache import MaskedCache
from kava.errors import KavaError
from kava.evaluation.answers import split_at_marker
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.batching import Encoder, Row
from kava.reasoning.context_window import max_positions
from kava.reasoning.methods import prompt_ids
from kava.reasoning.methods.cot import prefill_all_but_last
from kava.reasoning.reasoner import Reasoner
from kava.types import ANSWER_PROMPT, Example


@dataclass(frozen=True)
class Trace:
    """What the teacher reads after the question.

    source: `given`, `row` (from an example) or `written` (by the model).
    origin: where steps and answer come from, in a sentence.
    steps: all steps; the teacher reads the first `read` of them, the rest is dropped.
    read: number of steps that the teacher reads.
    answer: the answer that the teacher reads.
    """

    source: str
    origin: str
    steps: list[str]
    read: int
    answer: str


def find_trace(
    reasoner: Reasoner,
    question: str,
    context: MaskedCache,
    steps: Sequence[str] | None,
    answer: str | None,
    row: str | None,
    max_new_tokens: int,
) -> tuple[Trace, Row]:
    """Return the chain of thought, and the encoded example that the teacher reads.

    If the recipe says so (`drop_last_step`), the last of the given steps is dropped, as in
    training. Steps that the model writes keep their last one: the model learned to write chains
    that lack it already.

    Args:
        context: KV(Q), from which an answer is generated if none is given.
        steps: the steps; None lets the model write them.
        row: the id of the example that steps and answer are from, if any.

    Raises:
        KavaError: a step without text, or more tokens than the backbone has positions.
    """
    if steps is not None and not all(step.strip() for step in steps):
        raise KavaError(
            "inspect: a step is empty; remove it, or write its equation or sentence",
            code="inspect.empty-step",
            key="steps",
        )
    if steps is None:
        source, (steps, answer, note) = "written", _write(reasoner, question, max_new_tokens)
    else:
        steps, source = list(steps), "row" if row else "given"
        note = f"Steps and answer are those of row {row}." if row else "The steps were given."
    drops = source != "written" and reasoner.recipe.drop_last_step
    encoder = Encoder(reasoner.tokenizer, drop_last_step=drops)
    encoded = encoder.row(Example("asked", question, tuple(steps), answer or ""))
    if answer is None:
        answer = _ask(reasoner, context, encoded.steps, max_new_tokens)
        note += " The answer is what the model says after reading them."
        encoded = encoder.row(Example("asked", question, tuple(steps), answer))
    if not answer:
        encoded = replace(encoded, answer=[*encoder.prompt, reasoner.tokenizer.eos_token_id])
    most, needed = max_positions(reasoner), encoded.columns
    if most is not None and needed > most:
        raise KavaError(
            f"inspect: question, steps and answer have {needed} tokens, but the backbone has only "
            f"{most} positions; "
            + ("lower --max-new-tokens" if source == "written" else "pass fewer or shorter steps"),
            code="inspect.too-long",
            key="max_new_tokens" if source == "written" else "steps",
        )
    if drops and steps:
        note += " The last step is dropped, as in training (drop_last_step)."
    return Trace(source, note, list(steps), max(len(steps) - drops, 0), answer), encoded


def split_steps(text: str) -> list[str]:
    """Split a chain of thought into steps: equations `<<...>>` if there are any, else sentences."""
    parts = re.split(r"(?<=>>)\s*(?=<<)" if "<<" in text else r"(?<=[.!?])\s+", text.strip())
    return [part.strip() for part in parts if part.strip()]


def _write(reasoner: Reasoner, question: str, most: int) -> tuple[list[str], str | None, str]:
    """Return steps, answer and a description; the model writes them greedily after Q, no <bot>."""
    ids = torch.tensor([reasoner.encoder.question(question)], device=reasoner.device)
    text = _text(reasoner, prefill_all_but_last(reasoner, ids, torch.ones_like(ids) > 0), most)
    note = "No steps were given, so the model wrote them itself (greedily, without <bot>)."
    if reasoner.recipe.drop_last_step:
        note += " It learned to leave the last one out (drop_last_step)."
    written, answer = split_at_marker(text)
    if answer is None:
        note += f' It did not get to "{ANSWER_PROMPT}" within {most} tokens.'
    return split_steps(written), answer, note


def _ask(reasoner: Reasoner, context: MaskedCache, steps: list[int], most: int) -> str:
    """Return what the model answers after Q | C | "The answer is:"."""
    if steps:
        ids = torch.tensor([steps], device=reasoner.device)
        _, context = reasoner.extend(context, reasoner.embed(ids), torch.ones_like(ids) > 0)
    prompt = prompt_ids(reasoner, 1, reasoner.device)
    return _text(reasoner, ReasoningResult(context, prompt, ANSWER_PROMPT, 0, 1), most).strip()


def _text(reasoner: Reasoner, reasoning: ReasoningResult, most: int) -> str:
    ids: Any = reasoner.continue_from(reasoning, most)[0]
    return reasoner.tokenizer.decode(ids, skip_special_tokens=True)
