"""Coconut (arXiv:2412.06769): stage by stage, latents replace the steps of the chain of thought.

Q <bot> z_1 -> ... -> z_{k c} <eot> | C without its first k steps | "The answer is:" a EOS

The loss is the cross-entropy on the remaining steps and the answer. Stage 0 is plain chain of
thought, with neither latents nor <bot> and <eot>. Stage k has k c latents in place of the first k
steps. The last stage has all latents and no steps.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from kava.errors import KavaError
from kava.reasoning import batching
from kava.reasoning.latents import sequential
from kava.reasoning.methods._base import (
    Batch,
    Curriculum,
    LossTerms,
    Uniform,
    label_loss,
    prefill_question,
    student_suffix,
    teacher_forward,
)
from kava.reasoning.methods._sequential import SequentialMethod
from kava.reasoning.methods._work import Work, consecutive_passes, lengths, sequential_passes


class CoconutOptions(Curriculum):
    """Training stages of Coconut (Hao et al., arXiv:2412.06769); defaults are theirs for GSM8K.

    latents_per_stage: c, the number of latents that replace one step.
    epochs_per_stage: number of epochs of each stage.
    max_stage: number of stages with both latents and steps; a last stage without steps follows.
    uniform_prob: share of examples that are trained in another stage than the current one. That
        stage is drawn uniformly from 0 to the example's number of steps, so that earlier stages
        are not forgotten. Stage 0 itself, which the authors train as plain CoT, is not mixed.
    reset_optimizer: reset the moments of AdamW at each new stage.
    """

    latents_per_stage: int = Field(default=2, ge=1)
    max_stage: int = Field(default=3, ge=1)
    epochs_per_stage: float = Field(default=3.0, gt=0)
    uniform_prob: float = Field(default=0.0, ge=0, le=1)

    def scale_epochs(self, factor: float) -> CoconutOptions:
        """Return the same schedule stretched to `factor` times as many epochs."""
        return self.model_copy(update={"epochs_per_stage": self.epochs_per_stage * factor})


class Coconut(SequentialMethod):
    """Coconut (Hao et al., arXiv:2412.06769).

    A latent is the hidden state before it, without a projection. Each latent takes one forward pass
    that continues from the KV cache of those before it. The examples of a batch may be in different
    stages (`uniform_prob`); missing latents are padding.
    """

    label = "Coconut"
    paper = "2412.06769"
    Options = CoconutOptions
    defaults = {"drop_last_step": False, "projection": "none", "num_latents": 6}

    def check(self, reasoner) -> None:
        """Check that `num_latents` is the number of latents in the last stage.

        Raises:
            KavaError: it is not.
        """
        options, latents = self.options, self.recipe.num_latents
        if latents != options.latents_per_stage * options.max_stage:
            raise KavaError(
                f"num_latents {latents} is not method_options.latents_per_stage "
                f"{options.latents_per_stage} times method_options.max_stage {options.max_stage}",
                code="reasoning.uneven-stages",
                key="num_latents",
            )

    @property
    def block(self) -> int:
        """Number of latents per stage, c."""
        return self.options.latents_per_stage

    def stage(self, epoch: float) -> int:
        """Return the stage at `epoch`, from 0 (chain of thought) to `max_stage + 1` (no steps)."""
        last = self.options.max_stage + 1
        if epoch >= last * self.options.epochs_per_stage:
            return last
        # `epoch` is a quotient of steps, which rounding may put just below the start of a stage.
        return math.floor(epoch / self.options.epochs_per_stage + 1e-9)

    def last_stage_at(self, max_steps: int) -> float:
        """Return the epoch at which the stage without steps begins."""
        return (self.options.max_stage + 1) * self.options.epochs_per_stage

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch without the steps that latents replace in its stage.

        Except in stage 0, the batch gains `latents` [batch], the number of latents of each example,
        and `most_latents`, the largest of these numbers.
        """
        # Without <bot> and <eot>, because the authors train this stage as a separate CoT run.
        if self.stage(epoch) == 0:
            return batch
        device, rows = batch["steps"].device, batch["steps"].shape[0]
        stage = torch.full((rows,), self.stage(epoch))
        if self.options.uniform_prob > 0 and epoch < math.inf:
            mixed = uniform() < self.options.uniform_prob
            steps = batch["step_of"].amax(1).cpu() + 1 if batch["steps"].shape[1] else 0 * stage
            drawn = (uniform() * (steps + 1)).long()
            stage = torch.where(mixed, drawn, stage)
        last = stage > self.options.max_stage
        latents = stage.clamp(max=self.options.max_stage) * self.options.latents_per_stage
        stage = stage.masked_fill(last, _ALL).to(device)
        tokens = batching.tokens_of_steps(batch, stage)
        most, latents = int(latents.max()), latents.to(device)
        left = batching.drop_first_tokens(batch, tokens)
        return {**left, "latents": latents, "most_latents": most}

    def loss(self, reasoner, batch: Batch, counts: LossTerms) -> LossTerms:
        """Return the cross-entropy over the remaining steps and the answer."""
        question = prefill_question(reasoner, batch)
        if "latents" not in batch:  # stage 0
            written = teacher_forward(reasoner, question, batch)
            ce = label_loss(reasoner, written.hidden, batch, "teacher", counts["teacher"])
            return {"loss": ce, "student_ce": ce}
        state = sequential.think(
            reasoner,
            question[0],
            batch["most_latents"],
            student_suffix(reasoner, batch, steps=True),
            batch["latents"],
        )
        ce = label_loss(reasoner, state.suffix, batch, "teacher", counts["teacher"])
        return {"loss": ce, "student_ce": ce}

    def work(self, batch: Batch) -> Work:
        """Return the minimum work: question, latents, remaining steps and answer."""
        question, steps, answer = lengths(batch)
        if "latents" not in batch:
            return Work(consecutive_passes(question, steps + answer), batch["teacher_ids"].numel())
        latents = batch["latents"]
        student = sequential_passes(question, latents, 1 + steps + answer)
        projected = 0 if self.recipe.projection == "none" else int(latents.sum())
        return Work(
            [*consecutive_passes(question), *student], batch["teacher_ids"].numel(), projected
        )


_ALL = 1_000_000  # more steps than any chain of thought has

IMPLEMENTATION = Coconut
