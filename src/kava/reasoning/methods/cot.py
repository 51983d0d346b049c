"""CoT: generate the chain of thought, then the answer.

Q | C | "The answer is:" a EOS        cross-entropy on C and the answer
"""

from torch import Tensor

from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.methods._base import (
    Batch,
    LossTerms,
    Method,
    label_loss,
    prefill_question,
    teacher_forward,
)
from kava.reasoning.methods._work import Work, consecutive_passes, lengths


class CoT(Method):
    """Chain of thought: the paper's upper baseline, and the teacher's task in other methods."""

    label = "CoT"
    # The last step is kept, because the answer is read from it.
    defaults = {"drop_last_step": False}

    def loss(self, reasoner, batch: Batch, counts: LossTerms) -> LossTerms:
        """Return the cross-entropy over the chain of thought and the answer."""
        written = teacher_forward(reasoner, prefill_question(reasoner, batch), batch)
        ce = label_loss(reasoner, written.hidden, batch, "teacher", counts["teacher"])
        return {"loss": ce, "teacher_ce": ce}

    def work(self, batch: Batch) -> Work:
        """Return the minimum work: question, chain of thought and answer, once each."""
        question, steps, answer = lengths(batch)
        return Work(consecutive_passes(question, steps + answer), batch["teacher_ids"].numel())

    def think(
        self, reasoner, question: Tensor, mask: Tensor, num_iterations=None
    ) -> ReasoningResult:
        """Prefill the question; the chain of thought is generated as part of the answer."""
        return prefill_all_but_last(reasoner, question, mask)


def prefill_all_but_last(reasoner, question: Tensor, mask: Tensor) -> ReasoningResult:
    """Prefill a question without its last token, which becomes the prompt of the generation.

    Args:
        question: [batch, question], token ids.
        mask: [batch, question], true at real tokens.
    """
    # `generate` needs at least one token to process; the first new token is predicted from it.
    context = MaskedCache.empty(question.shape[0], question.device)
    if question.shape[1] > 1:
        _, context = reasoner.extend(context, reasoner.embed(question[:, :-1]), mask[:, :-1])
    return ReasoningResult(context, question[:, -1:], "", forward_passes=0, prefill_passes=1)


IMPLEMENTATION = CoT
