"""Tokenization and batching of examples: the only place that builds sequences and their masks.

A batch is a set of segments. Each segment is padded separately, so that it occupies the same
columns in every row (`.` is padding):

              question        steps           answer
    row 0     ..Q Q Q Q       C C C C C C     The answer is: 7 EOS .
    row 1     Q Q Q Q Q Q     C C C . . .     The answer is: 1 2   EOS

Questions are padded on the left and all later segments on the right. A cache may therefore have
holes. The mask marks the real columns, and positions count real columns only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from kava.backbones.encode import encode
from kava.backbones.masks import pad
from kava.errors import KavaError
from kava.reasoning import whole_text
from kava.types import ANSWER_PROMPT, Example


@dataclass(frozen=True)
class Row:
    """One tokenized example.

    Args:
        id: the example's id.
        question: token ids of the question, with BOS if the tokenizer has one.
        steps: token ids of the chain of thought; may be empty.
        step_of: for each token of `steps`, the index of its step, from 0.
        answer: token ids of the answer prompt, the answer and EOS.
        answer_start: index in `answer` of the answer's own first token: after the answer prompt,
            and after the blank if the tokenizer makes it a token of its own.
    """

    id: str
    question: list[int]
    steps: list[int]
    step_of: list[int]
    answer: list[int]
    answer_start: int

    @property
    def columns(self) -> int:
        """Total number of tokens of question, chain of thought and answer."""
        return len(self.question) + len(self.steps) + len(self.answer)


class Encoder:
    """Convert text to token ids, in the same way for every method.

    The question is BOS (if the tokenizer has one) and the text. Each step is tokenized separately,
    as in the data; steps that are sentences are separated by a space. The answer is the answer
    prompt, a space, the answer and EOS. With a tokenizer that writes a blank before each text, the
    steps have the ids of the whole chain of thought, and the answer those of prompt and answer.

    Raises:
        KavaError: the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: Any, drop_last_step: bool):
        if tokenizer.eos_token_id is None:
            raise KavaError(
                f"{tokenizer.name_or_path or 'tokenizer'}: has no end-of-sequence token; add "
                '"eos_token" to its tokenizer_config.json, or set tokenizer.eos_token in Python',
                code="reasoning.no-eos",
                key="eos_token",
            )
        self.tokenizer = tokenizer
        self.drop_last_step = drop_last_step
        self.prompt = self._encode([ANSWER_PROMPT])[0]
        self._whole = whole_text.prepends_blank(self._encode, tokenizer.convert_ids_to_tokens)

    def question(self, text: str) -> list[int]:
        """Return the token ids of a question, with BOS if the tokenizer has one."""
        return self.questions([text])[0]

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each question, with BOS if the tokenizer has one."""
        bos = self.tokenizer.bos_token_id
        first = [] if bos is None else [bos]
        return [first + ids for ids in self._encode(texts)]

    def row(self, example: Example) -> Row:
        """Tokenize one example: question, chain of thought and answer."""
        return self.rows([example])[0]

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples: question, chain of thought and answer of each."""
        # The last step is dropped as in PCCoT's code and in KaVa's recipes, but not in LOTUS and
        # Coconut (`defaults`).
        end = -1 if self.drop_last_step else None
        texts = [[*map(_with_leading_space, e.steps[:end])] for e in examples]
        traces = self._parts(texts)
        answers = self._answers([" " + e.answer for e in examples])
        questions = self.questions([e.question for e in examples])
        return [
            Row(
                id=example.id,
                question=question,
                steps=[token for step in trace for token in step],
                step_of=[i for i, step in enumerate(trace) for _ in step],
                answer=[*self.prompt, *answer, self.tokenizer.eos_token_id],
                answer_start=len(self.prompt) + self._leading_blanks(answer),
            )
            for example, question, trace, answer in zip(
                examples, questions, traces, answers, strict=True
            )
        ]

    def _answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each answer, as they follow the answer prompt."""
        separate = [parts[0] for parts in self._parts([[answer] for answer in answers])]
        if not self._whole:
            return separate
        pairs = self._parts([[ANSWER_PROMPT, answer] for answer in answers])
        # Inference continues the prompt's own ids. If a token spans prompt and answer, the answer
        # cannot have the ids of the whole text.
        return [
            after if prompt == self.prompt else answer
            for (prompt, after), answer in zip(pairs, separate, strict=True)
        ]

    def _leading_blanks(self, answer: list[int]) -> int:
        """Return the number of tokens before the first one that is not blank."""
        blank = takewhile(lambda token: not self.tokenizer.decode([token]).strip(), answer)
        return sum(1 for _ in blank)

    def _parts(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Return the token ids of each part of each text; each distinct part is encoded once."""
        pieces = [whole_text.prefixes(parts) if self._whole else parts for parts in texts]
        distinct = list(dict.fromkeys(piece for parts in pieces for piece in parts))
        ids = dict(zip(distinct, self._encode(distinct), strict=True))
        if self._whole:
            return [whole_text.split(parts, ids) for parts in texts]
        return [[ids[part] for part in parts] for parts in texts]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return encode(self.tokenizer, texts)


def _with_leading_space(step: str) -> str:
    """Return the step with a leading space, unless it is an equation (`<<...>>`)."""
    return step if step.startswith("<<") else " " + step


@dataclass(frozen=True)
class Labels:
    """Labels of a batch as flat indices, computed once: which columns predict which tokens.

    The hidden state at (rows[n], columns[n]) predicts the token ids[n].

    Args:
        rows, columns, ids: [labels] each.
    """

    rows: Tensor
    columns: Tensor
    ids: Tensor


def next_token_labels(ids: Tensor, mask: Tensor) -> Labels:
    """Return the next-token labels of right-padded segments that follow one other column.

    Column 0 of the labels is the last real token before the segments, and column j + 1 is column j
    of the segments. Padding between segments is skipped: a token is predicted from the last real
    column before it.

    Args:
        ids: [batch, columns], token ids of the segments.
        mask: [batch, columns], true at real tokens.
    """
    rows, targets = mask.nonzero(as_tuple=True)
    index = torch.arange(1, mask.shape[1] + 1, device=mask.device).expand_as(mask) * mask
    last_real = torch.cummax(index, dim=1).values if mask.shape[1] else index
    before = torch.cat((torch.zeros_like(index[:, :1]), last_real[:, :-1]), dim=1)
    return Labels(rows, before[rows, targets], ids[rows, targets])


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """Collate tokenized examples into the tensors of one micro-batch.

    Args:
        rows: the tokenized examples.
        pad_id: token id of the padding.

    Returns:
        A flat dict with these entries:

        - `question`, `steps`, `answer`: token ids, [batch, columns] each, and their masks
          `question_mask`, `steps_mask`, `answer_mask`;
        - `step_of`: [batch, steps], the index of each token's step, -1 at padding;
        - `teacher_rows`, `teacher_columns`, `teacher_ids`: labels over [question end, steps,
          answer];
        - `answer_rows`, `answer_columns`, `answer_ids`: labels over [column before, answer];
        - `answer_start`: [batch], the column in `answer` of the answer's own first token;
        - `ids`: the ids of the examples.
    """
    question, question_mask = pad([r.question for r in rows], "left", pad_id)
    steps, steps_mask = pad([r.steps for r in rows], "right", pad_id)
    answer, answer_mask = pad([r.answer for r in rows], "right", pad_id)
    return {
        "question": question, "question_mask": question_mask,
        "steps": steps, "steps_mask": steps_mask,
        "step_of": pad([r.step_of for r in rows], "right", -1)[0],
        "answer": answer, "answer_mask": answer_mask,
        "answer_start": torch.tensor([r.answer_start for r in rows]),
        "ids": [r.id for r in rows],
        **_labels(steps, steps_mask, answer, answer_mask),
    }  # fmt: skip


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch to a device, without waiting for the copies."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


def _labels(steps: Tensor, steps_mask: Tensor, answer: Tensor, answer_mask: Tensor) -> dict:
    """Return the `teacher_*` and `answer_*` labels of a batch, see `collate`."""
    # The first label is the token after the question: a question is never a label.
    teacher = next_token_labels(
        torch.cat((steps, answer), dim=1), torch.cat((steps_mask, answer_mask), dim=1)
    )
    found = {"teacher": teacher, "answer": next_token_labels(answer, answer_mask)}
    return {
        f"{name}_{part}": getattr(labels, part)
        for name, labels in found.items()
        for part in ("rows", "columns", "ids")
    }


def drop_first_tokens(batch: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """Return the batch without the first tokens of each chain of thought.

    The remaining tokens move to the left, so that each segment is padded on the right again.

    Args:
        batch: see `collate`.
        tokens: [batch], number of tokens to drop from each example.
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
    """Return the number of tokens in the first steps of each chain of thought, [batch].

    Args:
        batch: see `collate`.
        steps: [batch], number of steps to count.
    """
    return (batch["steps_mask"] & (batch["step_of"] < steps[:, None])).sum(1)
