"""Coconut: stage by stage, latents take the place of written steps.

Q <bot> z_1 -> ... -> z_{k c} <eot> | C without its first k steps | "The answer is:" a EOS

CE on what is left of C and answer. Stage 0 has every step written and no latent; stage k has k c
latents instead of k steps; the last stage has all latents and no step.
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
    LatentMethod,
    Terms,
    Uniform,
    label_loss,
    prefill_question,
    student_suffix,
)
from kava.reasoning.methods._work import Call, Work, chain, lengths, one_by_one
from kava.reasoning.states import LatentState


class Options(Curriculum):
    """The stages (Hao et al., arXiv:2412.06769; the defaults are their GSM8K setting).

    latents_per_stage: c; epochs_per_stage: how long each stage lasts.
    max_stage: stages with latents and written steps; one more follows without steps.
    uniform_prob: the share of rows that are trained in another stage than the current one, drawn
        from 0 to their number of steps, so that earlier stages are not forgotten.
    reset_optimizer: forget AdamW's moments at each new stage.
    """

    latents_per_stage: int = Field(default=2, ge=1)
    max_stage: int = Field(default=3, ge=1)
    epochs_per_stage: float = Field(default=3.0, gt=0)
    uniform_prob: float = Field(default=0.0, ge=0, le=1)

    def scale_epochs(self, factor: float) -> Options:
        """The same schedule in `factor` times as many epochs."""
        return self.model_copy(update={"epochs_per_stage": self.epochs_per_stage * factor})


class Coconut(LatentMethod):
    """Hao et al., arXiv:2412.06769; a latent is the state before it, without a projection.

    Each latent is one call that continues from the cache of those before it. Rows of a batch may
    be in different stages (`uniform_prob`): the latents that a row lacks are pads.
    """

    label = "Coconut"
    paper = "2412.06769"
    Options = Options
    defaults = {"drop_last_step": False, "projection": "none", "num_latents": 6}

    def check(self, reasoner) -> None:
        """Raise a KavaError where `num_latents` is not that of the last stage."""
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
        """c, the latents of a stage."""
        return self.options.latents_per_stage

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """One backbone call for each latent."""
        return sequential.think(reasoner, question, self.recipe.num_latents, suffix)

    def latent_calls(self, question, num_iterations, suffix) -> list[Call]:
        """<bot> and each latent in a pass of its own."""
        return one_by_one(question, self.recipe.num_latents, suffix)

    def projected_latents(self, num_iterations: int) -> int:
        """Each latent once, where there is a projection."""
        return super().projected_latents(1)

    def passes(self, num_iterations: int) -> int:
        """M: the call for <bot> belongs to the prefill."""
        return self.recipe.num_latents

    def stage(self, epoch: float) -> int:
        """0 is CoT, `max_stage + 1` the last."""
        last = self.options.max_stage + 1
        if epoch >= last * self.options.epochs_per_stage:
            return last
        return math.floor(epoch / self.options.epochs_per_stage + 1e-9)

    def last_stage_at(self, longest: int) -> float:
        """After all stages with written steps."""
        return (self.options.max_stage + 1) * self.options.epochs_per_stage

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Adds `latents` [B], how many each row has, and `most_latents`; drops the steps that
        they replace."""
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

    def loss(self, reasoner, batch: Batch, counts: Terms) -> Terms:
        """CE over what is left of the steps, and the answer."""
        question, _ = prefill_question(reasoner, batch)
        state = sequential.think(
            reasoner,
            question,
            batch["most_latents"],
            student_suffix(reasoner, batch, steps=True),
            batch["latents"],
        )
        ce = label_loss(reasoner, state.suffix, batch, "teacher", counts["written"])
        return {"loss": ce, "student_ce": ce}

    def work(self, batch: Batch) -> Work:
        """The question, each row's latents, what is left of its steps, and the answer."""
        question, steps, answer = lengths(batch)
        latents = batch["latents"]
        student = one_by_one(question, latents, 1 + steps + answer)
        projected = 0 if self.recipe.projection == "none" else int(latents.sum())
        return Work([*chain(question), *student], batch["teacher_ids"].numel(), projected)


_ALL = 1_000_000  # more steps than any trace has

IMPLEMENTATION = Coconut
