"""iCoT (arXiv:2405.14838): the chain of thought is removed from the left during training.

Q | C without its first s tokens | "The answer is:" a EOS

The loss is the cross-entropy on the rest of C and the answer. s grows during training until nothing
of C is left; the sequence is then that of No-CoT.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from kava.reasoning import batching
from kava.reasoning.methods._base import (
    Batch,
    Curriculum,
    LossTerms,
    Uniform,
    label_loss,
    prefill_question,
    teacher_forward,
)
from kava.reasoning.methods._work import Work, consecutive_passes, lengths
from kava.reasoning.methods.no_cot import NoCoT


class ICoTOptions(Curriculum):
    """Removal schedule (Deng, Choi, Shieber, arXiv:2405.14838); the defaults are theirs.

    tokens_per_epoch: Delta, the number of tokens removed per epoch, one by one at equal
        intervals.
    smoothing: lambda; o more tokens are removed from each example, with a probability
        proportional to exp(-lambda o). None disables smoothing.
    remove_all_beyond: once this many tokens are removed, all tokens are.
    reset_optimizer: reset the moments of AdamW with each removed token.
    """

    tokens_per_epoch: float = Field(default=8.0, gt=0)
    smoothing: float | None = Field(default=4.0, gt=0)
    remove_all_beyond: int | None = Field(default=None, ge=1)

    def scale_epochs(self, factor: float) -> ICoTOptions:
        """Return the same schedule stretched to `factor` times as many epochs."""
        return self.model_copy(update={"tokens_per_epoch": self.tokens_per_epoch / factor})


class ICoT(NoCoT):
    """Implicit chain of thought (Deng, Choi, Shieber, arXiv:2405.14838); answers like No-CoT."""

    label = "iCoT"
    paper = "2405.14838"
    Options = ICoTOptions
    uses_steps = True
    defaults = {"drop_last_step": False}

    def stage(self, epoch: float) -> int:
        """Return how many tokens are removed from each example at `epoch`.

        In the last stage all tokens are removed.
        """
        beyond = self.options.remove_all_beyond or _ALL
        removed = min(epoch * self.options.tokens_per_epoch, _ALL)
        # `epoch` is a quotient of steps; 5e-7 absorbs its rounding error before the floor.
        removed = math.floor(removed + 5e-7)
        return _ALL if removed >= beyond else removed

    def last_stage_at(self, max_steps: int) -> float:
        """Return the epoch at which the longest chain of thought is removed."""
        beyond = self.options.remove_all_beyond or max_steps
        return min(max_steps, beyond) / self.options.tokens_per_epoch

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch without the tokens removed so far and, with smoothing, a few more."""
        removed = self.stage(epoch)
        count = torch.full((batch["steps"].shape[0],), removed)
        smoothing = self.options.smoothing
        if smoothing is not None:
            # P(o) is geometric: the floor of an exponential variable with rate lambda.
            count += (-(1 - uniform()).log() / smoothing).long()
        # The remaining tokens move to the left: their positions follow those of the question.
        return batching.drop_first_tokens(batch, count.to(batch["steps"].device))

    def loss(self, reasoner, batch: Batch, counts: LossTerms) -> LossTerms:
        """Return the cross-entropy over the rest of the chain of thought and the answer."""
        written = teacher_forward(reasoner, prefill_question(reasoner, batch), batch)
        ce = label_loss(reasoner, written.hidden, batch, "teacher", counts["teacher"])
        return {"loss": ce, "student_ce": ce}

    def work(self, batch: Batch) -> Work:
        """Return the minimum work: question, rest of the chain of thought and answer, once each."""
        question, steps, answer = lengths(batch)
        return Work(consecutive_passes(question, steps + answer), batch["teacher_ids"].numel())


_ALL = 1_000_000  # more tokens than any chain of thought has

IMPLEMENTATION = ICoT
