"""PCCoT (arXiv:2506.18582): Jacobi iteration over latents, distilled from the teacher's states.

teacher   Q | C | "The answer is:" a EOS
student   Q <bot> | z_1 ... z_M | <eot> "The answer is:" a EOS

L = CE_student + w_t CE_teacher + a1 L_CODI
"""

import math
import random
from typing import cast

from torch import Tensor

from kava.reasoning.evictions import Observers
from kava.reasoning.latents import jacobi
from kava.reasoning.losses.hidden_state import hidden_state_loss
from kava.reasoning.methods._base import (
    Batch,
    LatentMethod,
    LossTerms,
    TeacherOutput,
    Uniform,
    label_loss,
    prefill_question,
    student_suffix,
    teacher_forward,
)
from kava.reasoning.methods._multiplex import MultiplexLoss
from kava.reasoning.methods._work import (
    ForwardPass,
    Work,
    consecutive_passes,
    lengths,
    parallel_passes,
)
from kava.reasoning.states import LatentState, Suffix
from kava.recipe.schema import Recipe


class PCCoT(LatentMethod):
    """PCCoT (Wu, Teng, Tu, arXiv:2506.18582), with the question computed once per step.

    With `multiplex.weight`, each latent is also trained to predict a span of the chain of thought.
    This is the loss of MUX; its use here is our addition.
    """

    label = "PCCoT"
    paper = "2506.18582"
    iterates = True
    jacobi = True
    losses = ("codi", "multiplex")
    #: The queries that are recorded in the teacher's forward pass.
    queries: Observers | None = None
    defaults = {"codi": {"loss": "smooth_l1"}}  # as in the authors' code

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.multiplex = MultiplexLoss(recipe)
        #: Whether a loss needs the latents of all passes, and not of the last alone.
        self.keeps_passes = recipe.kv.supervise == "all"

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """Generate all latents in parallel and refine them in T iterations."""
        return jacobi.think(
            reasoner, question, self.recipe.num_latents, num_iterations, suffix, keep_all
        )

    def latent_calls(self, question, num_iterations, suffix) -> list[ForwardPass]:
        """Return the forward passes: pass 0 and T passes over all latents."""
        return parallel_passes(question, self.recipe.num_latents, num_iterations, suffix)

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch, with what is drawn for it.

        These are T as `iterations` (`random_iterations`; the same for all parts of a step), and a
        span for each latent if the loss of MUX is used.
        """
        bounds = self.recipe.random_iterations
        if bounds and epoch < math.inf:
            # Seeded by the step and not by the example: all micro-batches and processes of a step
            # must run the same number of passes.
            drawn = random.Random(f"{self.recipe.seed}/iterations/{epoch!r}").randint(*bounds)
            batch = {**batch, "iterations": drawn}
        return self.multiplex.add_spans(batch, batch, self.recipe.num_latents, uniform)

    def counts(self, batch: Batch) -> LossTerms:
        """Return the denominators of all losses."""
        return super().counts(batch) | self.multiplex.counts(batch)

    def work(self, batch: Batch) -> Work:
        """Return the minimum work of a training step.

        It consists of the question (once), the teacher's chain of thought and answer, the latents
        and the student's answer. Comparing hidden states and caches involves no matrix product, and
        compressing the cache a negligible one.
        """
        question, steps, answer = lengths(batch)
        iterations = batch.get("iterations", self.recipe.num_iterations)
        student = self.latent_calls(question, iterations, 1 + answer)
        labels = batch["answer_ids"].numel() + batch["teacher_ids"].numel()
        labels += self.multiplex.labels(batch)
        projected = len(question) * self.projected_latents(iterations)
        return Work([*consecutive_passes(question, steps + answer), *student], labels, projected)

    def loss(self, reasoner, batch: Batch, counts: LossTerms) -> LossTerms:
        """Run the forward passes of a training step and return `loss` and all logged terms."""
        layers = self.recipe.codi.weight > 0
        question = prefill_question(reasoner, batch)
        teacher = teacher_forward(reasoner, question, batch, layers, self.queries)
        suffix = student_suffix(reasoner, batch, layers)
        student = self.student(reasoner, question[0], batch, suffix)
        return self.combine(reasoner, batch, counts, teacher, student)

    def student(self, reasoner, question, batch: Batch, suffix: Suffix) -> LatentState:
        """Generate the latents of a training batch, followed by `suffix`; see `latents`."""
        iterations = batch.get("iterations", self.recipe.num_iterations)
        return self.latents(reasoner, question, suffix, iterations, self.keeps_passes)

    def combine(
        self,
        reasoner,
        batch: Batch,
        counts: LossTerms,
        teacher: TeacherOutput,
        student: LatentState,
    ) -> LossTerms:
        """Return the loss terms and, as `loss`, their weighted sum.

        Args:
            batch, counts: see `Method.loss`.
            teacher: output of the teacher's forward pass.
            student: state after the student's latents and answer.
        """
        terms = {
            "student_ce": label_loss(reasoner, student.suffix, batch, "answer", counts["answer"]),
            "teacher_ce": label_loss(reasoner, teacher.hidden, batch, "teacher", counts["teacher"]),
        }
        # The weight w_t is our addition; the paper's equation has none, which is the default of 1.
        loss = terms["student_ce"] + self.recipe.teacher_ce_weight * terms["teacher_ce"]
        codi = self.recipe.codi
        if codi.weight > 0:
            states = reasoner.states_before_answer(student.output, student.suffix_start + 1, batch)
            terms["codi"] = hidden_state_loss(
                states,
                cast(Tensor, teacher.before_answer),  # not None, since it was requested
                codi.loss,
                codi.layerwise_std,
                counts["rows"],
            )
            loss = loss + codi.weight * terms["codi"]
        added, weighted = self.multiplex.terms(reasoner, batch, counts, student)
        return {"loss": loss + weighted, **terms, **added}


IMPLEMENTATION = PCCoT
