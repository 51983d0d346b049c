"""iCoT: written steps that vanish from the left while the model learns.

Q | C without its first s tokens | "The answer is:" a EOS        CE on what is left of C and answer

s grows with the training until nothing is left; what remains is No-CoT's sequence.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from kava.reasoning import batching
from kava.reasoning.methods._base import (
    Batch,
    Curriculum,
    Terms,
    Uniform,
    label_loss,
    prefill_question,
    teacher_forward,
)
from kava.reasoning.methods._work import Work, chain, lengths
from kava.reasoning.methods.no_cot import NoCoT


class Options(Curriculum):
    """The removal schedule (Deng, Choi, Shieber, arXiv:2405.14838; the defaults are theirs).

    tokens_per_epoch: Delta, removed one after the other at even distances.
    smoothing: lambda; each row loses o more tokens with a chance in proportion to exp(-lambda o).
        None is no smoothing.
    remove_all_beyond: once this many are removed, all are.
    reset_optimizer: forget AdamW's moments with every removed token.
    """

    tokens_per_epoch: float = Field(default=8.0, gt=0)
    smoothing: float | None = Field(default=4.0, gt=0)
    remove_all_beyond: int | None = Field(default=None, ge=1)

    def scale_epochs(self, factor: float) -> Options:
        """The same schedule in `factor` times as many epochs."""
        return self.model_copy(update={"tokens_per_epoch": self.tokens_per_epoch / factor})


class ICoT(NoCoT):
    """Deng, Choi, Shieber, arXiv:2405.14838. Answers as No-CoT does."""

    label = "iCoT"
    paper = "2405.14838"
    Options = Options
    uses_steps = True
    defaults = {"drop_last_step": False}

    def stage(self, epoch: float) -> int:
        """How many tokens are removed from every row; as many as there are is the last stage."""
        beyond = self.options.remove_all_beyond or _ALL
        removed = min(epoch * self.options.tokens_per_epoch, _ALL)
        # Half a millionth forgives the rounding of an epoch that is a quotient of steps.
        removed = math.floor(removed + 5e-7)
        return _ALL if removed >= beyond else removed

    def last_stage_at(self, longest: int) -> float:
        """Where the longest trace is gone."""
        beyond = self.options.remove_all_beyond or longest
        return min(longest, beyond) / self.options.tokens_per_epoch

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Without the tokens removed so far, and a few more by chance."""
        removed = self.stage(epoch)
        count = torch.full((batch["steps"].shape[0],), removed)
        smoothing = self.options.smoothing
        if smoothing is not None:
            # P(o) is geometric: the whole number below an exponential variable of rate lambda.
            count += (-(1 - uniform()).log() / smoothing).long()
        return batching.drop_first_tokens(batch, count.to(batch["steps"].device))

    def loss(self, reasoner, batch: Batch, counts: Terms) -> Terms:
        """CE over what is left of the steps, and the answer."""
        written = teacher_forward(reasoner, prefill_question(reasoner, batch), batch)
        ce = label_loss(reasoner, written.hidden, batch, "teacher", counts["written"])
        return {"loss": ce, "student_ce": ce}

    def work(self, batch: Batch) -> Work:
        """Question, what is left of the steps, and answer once."""
        question, steps, answer = lengths(batch)
        return Work(chain(question, steps + answer), batch["teacher_ids"].numel())


_ALL = 1_000_000  # more tokens than any trace has

IMPLEMENTATION = ICoT
