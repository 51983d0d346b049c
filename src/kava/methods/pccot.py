"""PCCoT: latents by Jacobi iteration, taught by the states of a teacher who writes.

teacher   Q | C | "The answer is:" a EOS
student   Q <bot> | z_1 ... z_M | <eot> "The answer is:" a EOS

L = CE_student + w_t CE_teacher + a1 L_CODI
"""

from __future__ import annotations

from torch import Tensor

from kava.latents import jacobi
from kava.latents._state import LatentState, Tail
from kava.losses.hidden_state import hidden_state_loss
from kava.methods._base import (
    Batch,
    Method,
    Terms,
    Thinking,
    Written,
    answer_tail,
    label_loss,
    prompt_ids,
    read_question,
    read_written,
)


class PCCoT(Method):
    """Wu, Teng, Tu, arXiv:2506.18582, with the question computed once."""

    uses_latents = True
    needs_queries = False

    def loss(self, reasoner, batch: Batch, counts: Tensor) -> Terms:
        """All passes of one step."""
        recipe = self.recipe
        layers = recipe.codi.weight > 0
        question = read_question(reasoner, batch)
        teacher = read_written(reasoner, question, batch, layers, self.needs_queries)
        student = jacobi.think(
            reasoner,
            question[0],
            recipe.num_latents,
            recipe.num_iterations,
            answer_tail(reasoner, batch, layers),
            keep_all=recipe.kv.supervise == "all",
        )
        return self.combine(reasoner, batch, counts, teacher, student)

    def combine(
        self, reasoner, batch: Batch, counts: Tensor, teacher: Written, student: LatentState
    ) -> Terms:
        """The terms and their weighted sum."""
        terms = {
            "student_ce": label_loss(reasoner, student.tail, batch, "answer", counts[1]),
            "teacher_ce": label_loss(reasoner, teacher.hidden, batch, "teacher", counts[0]),
        }
        loss = terms["student_ce"] + self.recipe.teacher_ce_weight * terms["teacher_ce"]
        codi = self.recipe.codi
        if codi.weight > 0:
            states = reasoner.colon_states(student.output, student.tail_start + 1)
            terms["codi"] = hidden_state_loss(
                states, teacher.colon, codi.loss, codi.layerwise_std, counts[2]
            )
            loss = loss + codi.weight * terms["codi"]
        return {"loss": loss, **terms}

    def think(
        self, reasoner, question: Tensor, mask: Tensor, num_iterations: int | None = None
    ) -> Thinking:
        """Pass 0 and T iterations; no teacher."""
        iterations = self.recipe.num_iterations if num_iterations is None else num_iterations
        context, _ = read_question(reasoner, {"question": question, "question_mask": mask})
        batch = question.shape[0]
        eot = Tail(reasoner.special("eot").expand(batch, 1, -1), mask.new_ones(batch, 1))
        state = jacobi.think(reasoner, context, self.recipe.num_latents, iterations, eot)
        prompt = prompt_ids(reasoner, batch, question.device)
        text = reasoner.prompt_text
        return Thinking(state.thought, prompt, text, iterations, 2, state.latents)


IMPLEMENTATION = PCCoT
