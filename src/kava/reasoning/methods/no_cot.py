"""No-CoT: generate the answer directly, without a chain of thought.

Q | "The answer is:" a EOS        cross-entropy on the answer
"""

import torch
from torch import Tensor

from kava.reasoning.answers import ReasoningResult
from kava.reasoning.methods._base import (
    Batch,
    LossTerms,
    Method,
    label_loss,
    prefill_question,
    prompt_ids,
)
from kava.reasoning.methods._work import Work, consecutive_passes, lengths
from kava.types import ANSWER_PROMPT


class NoCoT(Method):
    """Direct answers: the paper's lower baseline, the same backbone without any reasoning."""

    label = "No-CoT"
    uses_steps = False

    def loss(self, reasoner, batch: Batch, counts: LossTerms) -> LossTerms:
        """Return the cross-entropy over the answer."""
        context, last = prefill_question(reasoner, batch)
        output, _ = reasoner.extend(context, reasoner.embed(batch["answer"]), batch["answer_mask"])
        hidden = torch.cat((last, output.last_hidden_state), dim=1)
        ce = label_loss(reasoner, hidden, batch, "answer", counts["answer"])
        return {"loss": ce, "student_ce": ce}

    def work(self, batch: Batch) -> Work:
        """Return the minimum work: question and answer, once each."""
        question, _, answer = lengths(batch)
        return Work(consecutive_passes(question, answer), batch["answer_ids"].numel())

    def think(
        self, reasoner, question: Tensor, mask: Tensor, num_iterations=None
    ) -> ReasoningResult:
        """Prefill the question; there is no reasoning before the answer."""
        context, _ = prefill_question(reasoner, {"question": question, "question_mask": mask})
        prompt = prompt_ids(reasoner, question.shape[0], question.device)
        return ReasoningResult(context, prompt, ANSWER_PROMPT, 0, prefill_passes=1)


IMPLEMENTATION = NoCoT
