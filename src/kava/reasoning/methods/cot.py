"""CoT: write the steps, then the answer.

Q | C | "The answer is:" a EOS        CE on C and answer
"""

from __future__ import annotations

from torch import Tensor

from kava.backbones.thought import Thought
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.methods._base import (
    Batch,
    Method,
    Terms,
    label_loss,
    prefill_question,
    teacher_forward,
)
from kava.reasoning.methods._work import Work, chain, lengths


class CoT(Method):
    """Written steps; the paper's upper line, and the teacher's role in every other method."""

    label = "CoT"
    defaults = {"drop_last_step": False}  # the last step is the one that the answer is read from

    def loss(self, reasoner, batch: Batch, counts: Terms) -> Terms:
        """CE over steps and answer."""
        written = teacher_forward(reasoner, prefill_question(reasoner, batch), batch)
        ce = label_loss(reasoner, written.hidden, batch, "teacher", counts["written"])
        return {"loss": ce, "teacher_ce": ce}

    def work(self, batch: Batch) -> Work:
        """Question, steps and answer once."""
        question, steps, answer = lengths(batch)
        return Work(chain(question, steps + answer), batch["teacher_ids"].numel())

    def think(
        self, reasoner, question: Tensor, mask: Tensor, num_iterations=None
    ) -> ReasoningResult:
        """Nothing is thought; writing begins."""
        return begin_writing(reasoner, question, mask)


def begin_writing(reasoner, question: Tensor, mask: Tensor) -> ReasoningResult:
    """Right after the question [B, Q], whose last token is the prompt."""
    thought = Thought.empty(question.shape[0], question.device)
    if question.shape[1] > 1:
        _, thought = reasoner.extend(thought, reasoner.embed(question[:, :-1]), mask[:, :-1])
    return ReasoningResult(thought, question[:, -1:], "", forward_passes=0, prefill_passes=1)


IMPLEMENTATION = CoT
