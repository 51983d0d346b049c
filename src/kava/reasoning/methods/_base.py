"""What every method answers: how it is trained, and how it thinks before it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kava.backbones import cache
from kava.backbones.attention import QueryRecord, record_queries
from kava.backbones.cache import KeyValues
from kava.backbones.thought import Thought
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.batching import Row
from kava.reasoning.interface import ReasonerProtocol
from kava.reasoning.losses.cross_entropy import cross_entropy
from kava.reasoning.methods._work import Call, Work, chain
from kava.reasoning.states import LatentState, Suffix
from kava.recipe.schema import Recipe, Section

#: Tensors by name (`kava.reasoning.batching.collate`), and what a curriculum adds.
Batch = dict[str, Any]
Terms = dict[str, Tensor]
#: Gives a number between 0 and 1 for each row, [B] on the CPU; new ones with each call.
Uniform = Callable[[], Tensor]


class Curriculum(Section, ABC):
    """Options of a method that trains in stages."""

    reset_optimizer: bool = True

    @abstractmethod
    def scale_epochs(self, factor: float) -> Curriculum:
        """The same schedule in `factor` times as many epochs."""


class Method(ABC):
    """One file in this folder. `IMPLEMENTATION` names the class.

    A method with a curriculum also says which `stage` a point of the training belongs to, and what
    a batch looks like there (`apply_stage`); see icot, coconut, lotus.
    """

    #: What tables, plots and model cards call it; its file's name if empty.
    label: ClassVar[str] = ""
    #: The arXiv number of the paper that it is from, if any.
    paper: ClassVar[str | None] = None
    #: Whether answers continue from latent tokens; the projection exists only then.
    uses_latents = False
    #: Whether training reads the written steps.
    uses_steps = True
    #: Whether the number of iterations T can be chosen when a question is asked.
    iterates = False
    #: Sections of a recipe whose loss this method has; elsewhere their `weight` must stay 0.
    losses: ClassVar[tuple[str, ...]] = ()
    #: Recipe keys that this method sets differently; a recipe overrides them.
    defaults: ClassVar[dict[str, Any]] = {}
    #: The method's own keys: `method_options` in a recipe.
    Options: ClassVar[type[Section]] = Section

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.options: Any = self.Options.model_validate(recipe.method_options)

    def check(self, reasoner: ReasonerProtocol) -> None:  # noqa: B027
        """Raise a KavaError where the backbone or the recipe does not fit the method."""

    def check_rows(self, rows: Sequence[Row]) -> None:  # noqa: B027
        """Raise a KavaError where training rows do not fit the method; before the first step."""

    def modules(self, reasoner: ReasonerProtocol) -> nn.ModuleDict:
        """Weights that only this method has; trained and saved with the rest."""
        return nn.ModuleDict()

    # -- curriculum ------------------------------------------------------------------------------

    def stage(self, epoch: float) -> int | None:
        """The stage at a point of the training (in epochs), None for a method without stages."""
        return None

    def last_stage_at(self, longest: int) -> float:
        """The epoch at which the last stage begins, where `longest` is the longest trace."""
        return 0.0

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """A batch as this point of the training sees it; `math.inf` is the end of every stage.

        Args:
            uniform: for whatever is drawn.
        """
        return batch

    def counts(self, batch: Batch) -> Terms:
        """Denominators of the losses of one staged micro-batch, scalars by name.

        A trainer that accumulates gradients adds them up over its micro-batches, so that the
        accumulated gradient equals that of the whole batch (but for the standard deviations in
        L_CODI and L_KV, which are a micro-batch's).
        """
        device = batch["question"].device
        written, answer = batch["teacher_ids"].numel(), batch["answer_ids"].numel()
        found = {"written": written, "answer": answer, "rows": batch["question"].shape[0]}
        return {
            name: torch.full((), value, dtype=torch.long, device=device)
            for name, value in found.items()
        }

    # -- what a method is ------------------------------------------------------------------------

    @abstractmethod
    def loss(self, reasoner: ReasonerProtocol, batch: Batch, counts: Terms) -> Terms:
        """One training step: `loss` and every term that goes into the log, as scalars.

        Args:
            batch: see `kava.reasoning.batching.collate`; staged.
            counts: see `counts`; of the whole batch where gradients accumulate.
        """

    def work(self, batch: Batch) -> Work | None:
        """The least that `loss` needs for a staged batch, from the method's equations.

        A method that does not say so is benchmarked by counting what runs.
        """
        return None

    @abstractmethod
    def think(
        self,
        reasoner: ReasonerProtocol,
        question: Tensor,
        mask: Tensor,
        num_iterations: int | None = None,
    ) -> ReasoningResult:
        """Everything between a question ([B, Q], left-padded) and its answer."""

    def thinking_work(self, question: Tensor, num_iterations: int) -> Work | None:
        """The least that `think` needs for questions of these lengths [B]; no answer yet."""
        return Work(chain(question), labels=0)


class LatentMethod(Method):
    """A method that answers after Q <bot> z_1 ... z_M <eot>; `latents` says how they come about."""

    uses_latents = True

    @property
    def block(self) -> int:
        """How many latents belong together: fewer are only sensible in whole blocks."""
        return 1

    @abstractmethod
    def latents(
        self,
        reasoner: ReasonerProtocol,
        question: Thought,
        suffix: Suffix,
        num_iterations: int,
        keep_all: bool = False,
    ) -> LatentState:
        """Think after KV(Q), with all latents; `suffix` is what follows them.

        With `keep_all`, a method that iterates keeps keys, values and states of every pass.
        """

    def latent_calls(
        self, question: Tensor, num_iterations: int, suffix: Tensor
    ) -> list[Call] | None:
        """The passes of all latents after questions of these lengths [B], with a suffix [B].

        None where the method does not say; see `work`.
        """
        return None

    def projected_latents(self, num_iterations: int) -> int:
        """How many latents of one row go through P."""
        return 0 if self.recipe.projection == "none" else self.recipe.num_latents * num_iterations

    def thinking_work(self, question: Tensor, num_iterations: int) -> Work | None:
        """The question, <bot>, the latents and <eot>."""
        latents = self.latent_calls(question, num_iterations, torch.ones_like(question))
        if latents is None:
            return None
        projected = len(question) * self.projected_latents(num_iterations)
        return Work([*chain(question), *latents], 0, projected)

    def passes(self, num_iterations: int) -> int:
        """Sequential backbone calls after pass 0, which belongs to the prefill."""
        return num_iterations

    def think(
        self,
        reasoner: ReasonerProtocol,
        question: Tensor,
        mask: Tensor,
        num_iterations: int | None = None,
    ) -> ReasoningResult:
        """Pass 0 and the latents; no teacher."""
        iterations = self.recipe.num_iterations if num_iterations is None else num_iterations
        context, _ = prefill_question(reasoner, {"question": question, "question_mask": mask})
        state = self.think_on(reasoner, context, iterations)
        return self.finish_thinking(reasoner, state, iterations)

    def think_on(
        self,
        reasoner: ReasonerProtocol,
        question: Thought,
        num_iterations: int,
        keep_all: bool = False,
    ) -> LatentState:
        """<bot>, the latents and <eot> after KV(Q), as when a question is asked."""
        mask = question.attention_mask
        batch = mask.shape[0]
        eot = Suffix(reasoner.special("eot").expand(batch, 1, -1), mask.new_ones(batch, 1))
        return self.latents(reasoner, question, eot, num_iterations, keep_all)

    def finish_thinking(
        self, reasoner: ReasonerProtocol, state: LatentState, num_iterations: int
    ) -> ReasoningResult:
        """What the answer continues from."""
        mask = state.thought.attention_mask
        prompt = prompt_ids(reasoner, mask.shape[0], mask.device)
        text, passes = reasoner.prompt_text, self.passes(num_iterations)
        return ReasoningResult(state.thought, prompt, text, passes, 2, state.latents)


@dataclass(frozen=True)
class TeacherOutput:
    """A teacher's pass over written steps and answer.

    hidden: [B, 1 + C + A, d], the last question state first.
    colon: [L, B, d], all layers at the last token of the answer prompt; None if not asked for.
    steps, answer: keys and values of the C and A columns, detached.
    queries: of the A columns; None if not asked for.
    """

    hidden: Tensor
    colon: Tensor | None
    steps: KeyValues
    answer: KeyValues
    queries: QueryRecord | None


def prefill_question(reasoner: ReasonerProtocol, batch: Batch) -> tuple[Thought, Tensor]:
    """KV(Q), computed once for teacher and student, and its last state [B, 1, d]."""
    start = Thought.empty(batch["question"].shape[0], batch["question"].device)
    output, thought = reasoner.extend(
        start, reasoner.embed(batch["question"]), batch["question_mask"]
    )
    return thought, output.last_hidden_state[:, -1:]


def teacher_forward(
    reasoner: ReasonerProtocol,
    question: tuple[Thought, Tensor],
    batch: Batch,
    layers: bool = False,
    queries: bool = False,
) -> TeacherOutput:
    """The teacher: Q | C | "The answer is:" a EOS, continued from KV(Q)."""
    ids = torch.cat((batch["steps"], batch["answer"]), dim=1)
    mask = torch.cat((batch["steps_mask"], batch["answer_mask"]), dim=1)
    start, width = question[0].columns, batch["steps"].shape[1]
    with record_queries(slice(width, None)) if queries else nullcontext() as record:
        output, after = reasoner.extend(question[0], reasoner.embed(ids), mask, layers)
    pairs = cache.detach(cache.key_values(after.past_key_values, start))
    return TeacherOutput(
        hidden=torch.cat((question[1], output.last_hidden_state), dim=1),
        colon=reasoner.colon_states(output, width) if layers else None,
        steps=[(keys[:, :, :width], values[:, :, :width]) for keys, values in pairs],
        answer=[(keys[:, :, width:], values[:, :, width:]) for keys, values in pairs],
        queries=record,
    )


def label_loss(
    reasoner: ReasonerProtocol, hidden: Tensor, batch: Batch, name: str, count: Tensor
) -> Tensor:
    """CE over the labels called `name`, logits computed at those positions only."""
    states = hidden[batch[f"{name}_rows"], batch[f"{name}_columns"]]
    return cross_entropy(reasoner, states, batch[f"{name}_ids"], count)


def student_suffix(
    reasoner: ReasonerProtocol, batch: Batch, layers: bool = False, steps: bool = False
) -> Suffix:
    """<eot> and the answer, as the student's end; with `steps`, written steps between them."""
    ids, mask = batch["answer"], batch["answer_mask"]
    if steps:
        ids = torch.cat((batch["steps"], ids), dim=1)
        mask = torch.cat((batch["steps_mask"], mask), dim=1)
    eot = reasoner.special("eot").expand(ids.shape[0], 1, -1)
    mask = torch.nn.functional.pad(mask, (1, 0), value=True)
    return Suffix(torch.cat((eot, reasoner.embed(ids)), dim=1), mask, layers)


def prompt_ids(reasoner: ReasonerProtocol, batch: int, device: torch.device) -> Tensor:
    """ "The answer is:" for every row, [B, P]."""
    return torch.tensor(reasoner.encoder.prompt, device=device).expand(batch, -1)
