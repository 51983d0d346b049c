"""Sequences, masks and positions: made here and nowhere else.

A batch is a set of segments, each padded on its own, so that every segment is the same columns in
every row (`.` is a pad):

              question        steps           answer
    row 0     ..Q Q Q Q       C C C C C C     The answer is: 7 EOS .
    row 1     Q Q Q Q Q Q     C C C . . .     The answer is: 1 2   EOS

Questions are padded on the left and everything after them on the right. A cache may therefore
have holes; the mask says which columns are real, and a position counts real columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kava.backbones.masks import pad
from kava.errors import KavaError
from kava.types import ANSWER_PROMPT, Example

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """One tokenised example. `answer` is the prompt, the answer and EOS; `steps` may be empty.

    `step_of`: for each token of `steps`, the number of its step, from 0.
    """

    id: str
    question: list[int]
    steps: list[int]
    step_of: list[int]
    answer: list[int]

    @property
    def columns(self) -> int:
        """Tokens of all parts."""
        return len(self.question) + len(self.steps) + len(self.answer)


class Encoder:
    """Text to token ids, the same way for every method.

    Question: BOS (where the tokenizer has one) and the text. Steps: each on its own, as in the
    data, separated by a blank if they are sentences. Answer: prompt, blank, answer, EOS.

    Raises:
        KavaError: the tokenizer has no EOS.
    """

    def __init__(self, tokenizer: Any, drop_last_step: bool):
        if tokenizer.eos_token_id is None:
            raise KavaError(
                "the tokenizer has no end-of-sequence token; set tokenizer.eos_token",
                code="reasoning.no-eos",
                key="eos_token",
            )
        self.tokenizer = tokenizer
        self.drop_last_step = drop_last_step
        self.prompt = self._encode([ANSWER_PROMPT])[0]

    def question(self, text: str) -> list[int]:
        """BOS and the question's tokens."""
        return self.questions([text])[0]

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        """BOS and the tokens of each question."""
        bos = self.tokenizer.bos_token_id
        first = [] if bos is None else [bos]
        return [first + ids for ids in self._encode(texts)]

    def row(self, example: Example) -> Row:
        """Tokenise one example whole."""
        return self.rows([example])[0]

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenise examples whole. Each different step and answer is encoded once."""
        traces = [[_spaced(s) for s in self._kept(e)] for e in examples]
        answers = [" " + e.answer for e in examples]
        parts = list(dict.fromkeys([*answers, *(step for trace in traces for step in trace)]))
        ids = dict(zip(parts, self._encode(parts), strict=True))
        questions = self.questions([e.question for e in examples])
        return [
            Row(
                id=example.id,
                question=question,
                steps=[token for step in trace for token in ids[step]],
                step_of=[i for i, step in enumerate(trace) for _ in ids[step]],
                answer=[*self.prompt, *ids[answer], self.tokenizer.eos_token_id],
            )
            for example, question, trace, answer in zip(
                examples, questions, traces, answers, strict=True
            )
        ]

    def _kept(self, example: Example) -> tuple[str, ...]:
        return example.steps[:-1] if self.drop_last_step else example.steps

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # A question may hold the text of a special token; it is read as text.
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]


def _spaced(step: str) -> str:
    """Equations touch one another; sentences are parted by a blank."""
    return step if step.startswith("<<") else " " + step


@dataclass(frozen=True)
class Labels:
    """Which columns predict which tokens, as flat indices, found once for a batch.

    rows, columns, ids: [N]. A hidden state at (rows[n], columns[n]) predicts ids[n].
    """

    rows: Tensor
    columns: Tensor
    ids: Tensor


def next_token_labels(ids: Tensor, mask: Tensor) -> Labels:
    """Labels of right-padded segments [B, S] that follow one column (column 0).

    Column 0 stands for the last real token before the segments; column j + 1 for segment
    column j. Pads inside are jumped over: the predecessor is the last real column.
    """
    rows, targets = mask.nonzero(as_tuple=True)
    index = torch.arange(1, mask.shape[1] + 1, device=mask.device).expand_as(mask) * mask
    last_real = torch.cummax(index, dim=1).values if mask.shape[1] else index
    before = torch.cat((torch.zeros_like(index[:, :1]), last_real[:, :-1]), dim=1)
    return Labels(rows, before[rows, targets], ids[rows, targets])


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """Rows to the tensors of one micro-batch.

    Returns a flat dict: `question`, `steps`, `answer` with their `_mask` ([B, .]); `step_of`
    ([B, C], the number of each token's step, -1 at pads); `teacher_*` labels over [question end,
    steps, answer] and `answer_*` labels over [column before, answer], each as `rows`, `columns`,
    `ids`; and the rows' `ids`.
    """
    question, question_mask = pad([r.question for r in rows], "left", pad_id)
    steps, steps_mask = pad([r.steps for r in rows], "right", pad_id)
    answer, answer_mask = pad([r.answer for r in rows], "right", pad_id)
    return {
        "question": question, "question_mask": question_mask,
        "steps": steps, "steps_mask": steps_mask,
        "step_of": pad([r.step_of for r in rows], "right", -1)[0],
        "answer": answer, "answer_mask": answer_mask,
        "ids": [r.id for r in rows],
        **_labels(steps, steps_mask, answer, answer_mask),
    }  # fmt: skip


def _labels(steps: Tensor, steps_mask: Tensor, answer: Tensor, answer_mask: Tensor) -> dict:
    written = next_token_labels(
        torch.cat((steps, answer), dim=1), torch.cat((steps_mask, answer_mask), dim=1)
    )
    found = {"teacher": written, "answer": next_token_labels(answer, answer_mask)}
    return {
        f"{name}_{part}": getattr(labels, part)
        for name, labels in found.items()
        for part in ("rows", "columns", "ids")
    }


def drop_first_tokens(batch: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The same batch without the first `tokens` [B] reasoning tokens of each row.

    What is left moves to the left, so that each segment is padded on its right again.
    """
    columns = torch.arange(batch["steps"].shape[1], device=tokens.device)
    kept = batch["steps_mask"] & (columns >= tokens[:, None])
    order = (~kept).long().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
    parts = {name: batch[name].gather(1, order) for name in ("steps", "step_of")}
    parts["steps_mask"] = kept.gather(1, order)
    parts["step_of"] = parts["step_of"].masked_fill(~parts["steps_mask"], -1)
    labels = _labels(parts["steps"], parts["steps_mask"], batch["answer"], batch["answer_mask"])
    return {**batch, **parts, **labels}


def tokens_of_steps(batch: dict[str, Any], steps: Tensor) -> Tensor:
    """[B], how many reasoning tokens the first `steps` [B] steps of each row have."""
    return (batch["steps_mask"] & (batch["step_of"] < steps[:, None])).sum(1)


def to_ascii(batch: dict[str, Any], tokenizer: Any, width: int = 6) -> str:
    """A batch in ASCII, one line per row, for eyes: `|` between segments, `.` for pads."""
    lines = []
    for i in range(len(batch["ids"])):
        parts = []
        for name in ("question", "steps", "answer"):
            ids, mask = batch[name][i].tolist(), batch[f"{name}_mask"][i].tolist()
            words = [
                tokenizer.decode([token]).strip() or "_" if real else "."
                for token, real in zip(ids, mask, strict=True)
            ]
            parts.append(" ".join(word[:width].ljust(width) for word in words))
        lines.append(" | ".join(parts))
    return "\n".join(lines)
