"""`kava data check --debug`: examples as a recipe trains on them, as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kava.reasoning import batching
from kava.reasoning.reasoner import Reasoner
from kava.types import Example

ROWS = 3


@dataclass(frozen=True)
class Column:
    """One column of a sequence of a batch.

    span: what it belongs to, such as `question`; the chain of thought has `step 1` and so on.
    token: its text, escaped.
    real: the attention mask; false at padding.
    label: the token that is to be predicted there, escaped; None without a label.
    """

    span: str
    token: str
    real: bool
    label: str | None = None


def show_rows(reasoner: Reasoner, examples: Sequence[Example]) -> Iterator[str]:
    """Yield lines that show a batch of examples as the method's last stage trains on it."""
    yield f"method {reasoner.recipe.method}, as after the last stage of its curriculum"
    yield "mask 1: attended to, 0: padding; label: the token to be predicted there"
    for name, rows in sequences(reasoner, examples).items():
        for example, columns in zip(examples, rows, strict=True):
            yield ""
            yield f"row {example.id!r}, {name}: {len(columns)} columns"
            yield f"{'column':>6}  {'span':<10}  mask  {'token':<20}  label"
            for number, one in enumerate(columns):
                mask, label = "1" if one.real else "0", one.label or "-"
                yield f"{number:>6}  {one.span:<10}  {mask:<4}  {one.token:<20}  {label}"


def sequences(reasoner: Reasoner, examples: Sequence[Example]) -> dict[str, list[list[Column]]]:
    """Return the columns of each example in the sequences of a training step.

    These are `student`, with latents, and `teacher`, which reads the chain of thought; for a method
    without latents `model`. One step is computed, which tells whether there is a teacher.
    """
    rows, method = reasoner.encoder.rows(examples), reasoner.method
    batch = batching.collate(rows, reasoner.tokenizer.pad_token_id)
    batch = reasoner.apply_stage(batching.to_device(batch, reasoner.device))
    with torch.no_grad():
        terms = reasoner.forward(method.counts(batch), **batch)
    if not method.uses_latents:
        return {"model": _columns(reasoner, batch, method.uses_steps, [])}
    replaced = "left" in batch or "latents" in batch  # a curriculum keeps some of the steps
    student = batch.get("left", batch)
    found = {"student": _columns(reasoner, student, replaced, _latents(reasoner, batch))}
    if "teacher_ce" in terms:
        found["teacher"] = _columns(reasoner, batch, True, [])
    return found


def _latents(reasoner: Reasoner, batch: dict[str, Any]) -> list[int]:
    """Return the number of latents of each example."""
    rows = len(batch["question"])
    if "latents" in batch:
        return batch["latents"].tolist()
    width = getattr(reasoner.method, "width", None)
    return [batch["stage"] * width if "left" in batch else reasoner.recipe.num_latents] * rows


def _columns(
    reasoner: Reasoner, batch: dict[str, Any], with_steps: bool, latents: list[int]
) -> list[list[Column]]:
    """Return the columns of question, latents (if any), steps (if asked for) and answer."""

    def text(token: int) -> str:
        return repr(reasoner.tokenizer.decode([token]))

    parts = ("steps", "answer") if with_steps else ("answer",)
    labels = "teacher" if with_steps else "answer"
    where = zip(*(batch[f"{labels}_{x}"].tolist() for x in ("rows", "columns", "ids")), strict=True)
    predicted = {(row, column): text(token) for row, column, token in where}
    found = []
    for row in range(len(batch["question"])):
        columns = list(_segment(batch, "question", row, text))
        if latents:
            most = max(latents)
            thought = [Column("latent", f"latent {i}", i < latents[row]) for i in range(most)]
            columns += [Column("<bot>", "<bot>", True), *thought, Column("<eot>", "<eot>", True)]
        begin = len(columns) - 1  # labels count from the column before what is predicted
        for part in parts:
            columns += _segment(batch, part, row, text)
        found.append(
            [
                Column(one.span, one.token, one.real, predicted.get((row, number - begin)))
                for number, one in enumerate(columns)
            ]
        )
    return found


def _segment(batch: dict[str, Any], part: str, row: int, text: Any) -> Iterator[Column]:
    ids, mask = batch[part][row].tolist(), batch[f"{part}_mask"][row].tolist()
    for number, (token, real) in enumerate(zip(ids, mask, strict=True)):
        step = int(batch["step_of"][row, number]) + 1 if part == "steps" and real else 0
        span = f"step {step}" if step else part
        yield Column(span if real else "padding", text(token) if real else "", real)
