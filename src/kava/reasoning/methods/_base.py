"""Base classes of the methods: how a method is trained, and how it reasons before it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from kava.backbones import cache
from kava.backbones.attention import QueryRecord, record_queries
from kava.backbones.cache import KeyValues
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.batching import Row
from kava.reasoning.evictions import Observers
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.losses.cross_entropy import cross_entropy
from kava.reasoning.methods._work import ForwardPass, Work, consecutive_passes
from kava.reasoning.states import AutoIterations, LatentState, Suffix
from kava.recipe.schema import Recipe, Section
from kava.types import ANSWER_PROMPT

#: Tensors by name (see `kava.reasoning.batching.collate`), and the entries that a curriculum adds.
Batch = dict[str, Any]
LossTerms = dict[str, Tensor]
#: Returns a random number between 0 and 1 for each example, [batch] on the CPU, anew in each call.
Uniform = Callable[[], Tensor]


class Curriculum(Section, ABC):
    """Options of a method that trains in stages (a curriculum)."""

    reset_optimizer: bool = True

    @abstractmethod
    def scale_epochs(self, factor: float) -> Curriculum:
        """Return the same schedule stretched to `factor` times as many epochs."""


class Method(ABC):
    """Base class of every training method; each file of this folder defines one.

    The file assigns its class to `IMPLEMENTATION`. A method with a curriculum also defines which
    `stage` a point of the training belongs to, and how a batch is changed in that stage
    (`apply_stage`); see icot, coconut and lotus.
    """

    #: Label in tables, plots and model cards; the file name if empty.
    label: ClassVar[str] = ""
    #: The arXiv number of the method's paper, if any.
    paper: ClassVar[str | None] = None
    #: Whether answers continue from latent tokens; only then does a projection exist.
    uses_latents = False
    #: Whether all questions have the same number of latents, if the method has any.
    fixed_size = True
    #: Whether training uses the chain of thought.
    uses_steps = True
    #: Whether the number of iterations T can be chosen at inference.
    iterates = False
    #: Whether T can be "auto", if the method iterates.
    finds_iterations = True
    #: Whether latents are refined by Jacobi iteration, to which `latent_update` and
    #: `random_iterations` apply.
    jacobi = False
    #: Recipe sections whose loss this method has; the `weight` of all other losses must stay 0.
    losses: ClassVar[tuple[str, ...]] = ()
    #: Recipe keys for which this method has other defaults; a recipe overrides them.
    defaults: ClassVar[dict[str, Any]] = {}
    #: The method's own keys, `method_options` in a recipe.
    Options: ClassVar[type[Section]] = Section

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.options: Any = self.Options.model_validate(recipe.method_options)

    def check(self, reasoner: ReasonerBase) -> None:  # noqa: B027
        """Check that the backbone and the recipe fit the method.

        Raises:
            KavaError: they do not.
        """

    def check_rows(self, rows: Sequence[Row]) -> None:  # noqa: B027
        """Check, before the first training step, that the training examples fit the method.

        Raises:
            KavaError: they do not.
        """

    def modules(self, reasoner: ReasonerBase) -> nn.ModuleDict:
        """Return the modules that only this method has; they are trained and saved as well."""
        return nn.ModuleDict()

    def training_modules(self, reasoner: ReasonerBase) -> nn.ModuleDict:
        """Return the modules that only the loss of this method needs.

        They are trained, and saved in the checkpoints from which a training is resumed, but not in
        the final one.
        """
        return nn.ModuleDict()

    @property
    def trained_tokens(self) -> tuple[str, ...]:
        """Names of the special tokens whose embeddings the method uses; the others are frozen."""
        if not self.uses_latents:
            return ()
        # Sequential latents have no <latent> embedding: the input of each is a projected state.
        return ("bot", "latent", "eot") if self.iterates else ("bot", "eot")

    # -- curriculum ------------------------------------------------------------------------------

    def stage(self, epoch: float) -> int | None:
        """Return the stage at a point of the training, or None for a method without stages.

        Args:
            epoch: epochs since the start of the training; may be a fraction.
        """
        return None

    def last_stage_at(self, max_steps: int) -> float:
        """Return the epoch at which the last stage begins.

        Args:
            max_steps: number of tokens of the longest chain of thought.
        """
        return 0.0

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch as it is used at this point of the training.

        Args:
            batch: see `kava.reasoning.batching.collate`.
            epoch: epochs since the start of the training; `math.inf` means after the last stage.
            uniform: source of random numbers.
        """
        return batch

    def counts(self, batch: Batch) -> LossTerms:
        """Return the denominators of the losses for one micro-batch, as scalars by name.

        With gradient accumulation, the trainer sums them over all micro-batches, so that the
        accumulated gradient equals that of the whole batch. The exception is the standard
        deviation in L_CODI and L_KV, which is computed for each micro-batch.

        Args:
            batch: a micro-batch to which `apply_stage` was applied.
        """
        device = batch["question"].device
        teacher, answer = batch["teacher_ids"].numel(), batch["answer_ids"].numel()
        found = {"teacher": teacher, "answer": answer, "rows": batch["question"].shape[0]}
        return {
            name: torch.full((), value, dtype=torch.long, device=device)
            for name, value in found.items()
        }

    # -- what a method is ------------------------------------------------------------------------

    @abstractmethod
    def loss(self, reasoner: ReasonerBase, batch: Batch, counts: LossTerms) -> LossTerms:
        """Run the forward passes of a training step and return `loss` and all logged terms.

        Args:
            batch: see `kava.reasoning.batching.collate`; `apply_stage` was applied to it.
            counts: see `counts`; with gradient accumulation, those of the whole batch.

        Returns:
            Scalars by name.
        """

    def work(self, batch: Batch) -> Work | None:
        """Return the minimum work that `loss` requires by the method's equations, or None.

        If it is None, `kava bench` counts the work that is done instead.

        Args:
            batch: a batch to which `apply_stage` was applied.
        """
        return None

    @abstractmethod
    def think(
        self,
        reasoner: ReasonerBase,
        question: Tensor,
        mask: Tensor,
        num_iterations: int | Literal["auto"] | None = None,
    ) -> ReasoningResult:
        """Prefill the question and reason, up to the point where the answer begins.

        Args:
            question: [batch, question], token ids, padded on the left.
            mask: [batch, question], true at real tokens.
            num_iterations: T, or `auto`; by default that of the recipe.
        """

    def reasoning_work(self, question: Tensor, num_iterations: int) -> Work | None:
        """Return the minimum work that `think` requires, without the answer.

        Args:
            question: [batch], lengths of the questions.
            num_iterations: T.
        """
        return Work(consecutive_passes(question), labels=0)


class LatentMethod(Method):
    """Base class of methods that answer after latent tokens: Q <bot> z_1 ... z_M <eot>.

    The method `latents` defines how the latents are generated.
    """

    uses_latents = True
    #: Whether an answer begins with "The answer is:"; if not, the method decodes everything after
    #: <eot> itself.
    begins_with_prompt = True

    @property
    def block(self) -> int:
        """Number of latents in a block; using fewer latents only makes sense in whole blocks."""
        return 1

    @abstractmethod
    def latents(
        self,
        reasoner: ReasonerBase,
        question: MaskedCache,
        suffix: Suffix,
        num_iterations: int | AutoIterations,
        keep_all: bool = False,
    ) -> LatentState:
        """Generate all latents after the question.

        Args:
            question: KV(Q), the KV cache of the question.
            suffix: what follows the latents.
            num_iterations: T.
            keep_all: keep keys, values and hidden states of every pass, if the method iterates.
        """

    def latent_calls(
        self, question: Tensor, num_iterations: int, suffix: Tensor
    ) -> list[ForwardPass] | None:
        """Return the forward passes that the latents and the suffix require, or None; see `work`.

        Args:
            question: [batch], lengths of the questions.
            num_iterations: T.
            suffix: [batch], lengths of the suffixes.
        """
        return None

    def projected_latents(self, num_iterations: int) -> int:
        """Return how many latent states of one example pass through the projection P."""
        return 0 if self.recipe.projection == "none" else self.recipe.num_latents * num_iterations

    def reasoning_work(self, question: Tensor, num_iterations: int) -> Work | None:
        """Return the minimum work for the question, <bot>, the latents and <eot>."""
        latents = self.latent_calls(question, num_iterations, torch.ones_like(question))
        if latents is None:
            return None
        projected = len(question) * self.projected_latents(num_iterations)
        return Work([*consecutive_passes(question), *latents], 0, projected)

    def passes(self, num_iterations: int) -> int:
        """Return the number of sequential forward passes after pass 0 (part of the prefill)."""
        return num_iterations

    def think(
        self,
        reasoner: ReasonerBase,
        question: Tensor,
        mask: Tensor,
        num_iterations: int | Literal["auto"] | None = None,
    ) -> ReasoningResult:
        """Prefill the question and generate the latents; no teacher is involved."""
        recipe = self.recipe
        iterations = recipe.num_iterations if num_iterations is None else num_iterations
        if iterations == "auto":
            iterations = AutoIterations(recipe.max_iterations, recipe.tolerance)
        state = self.think_in_latents(reasoner, question, mask, iterations)
        return self.finish_thinking(reasoner, state, iterations)

    def think_in_latents(
        self,
        reasoner: ReasonerBase,
        question: Tensor,
        mask: Tensor,
        num_iterations: int | AutoIterations,
    ) -> LatentState:
        """Prefill the question and generate the latents and <eot>; see `think`."""
        # Only the student, unlike the authors' code of PCCoT, which also runs the teacher here.
        context, _ = prefill_question(reasoner, {"question": question, "question_mask": mask})
        return self.latents(reasoner, context, eot_suffix(reasoner, context), num_iterations)

    def finish_thinking(
        self, reasoner: ReasonerBase, state: LatentState, num_iterations: int | AutoIterations
    ) -> ReasoningResult:
        """Return the state from which the answer is generated."""
        prompt, text = self.begin_answer(reasoner, state.suffix[:, -1])
        found = None if state.iterations is None else state.iterations.tolist()
        passes = max(found) if found else self.passes(cast(int, num_iterations))
        # Two passes belong to the prefill: that of the question and pass 0, which has <bot>.
        return ReasoningResult(state.cache, prompt, text, passes, 2, state.latents, found)

    def begin_answer(self, reasoner: ReasonerBase, eot: Tensor) -> tuple[Tensor, str | None]:
        """Return the token ids that an answer begins with, and their text (`ReasoningResult`).

        These are "The answer is:" or, if `begins_with_prompt` is false, the likeliest token
        after <eot>.

        Args:
            eot: [batch, hidden], hidden state of <eot> in the last layer.

        Returns:
            Token ids, [batch, prompt], and the text.
        """
        if self.begins_with_prompt:
            return prompt_ids(reasoner, len(eot), eot.device), ANSWER_PROMPT
        scores = reasoner.logits(eot).float()
        # This token becomes the prompt of `generate`, which does not stop at an EOS in its prompt.
        scores[:, reasoner.tokenizer.eos_token_id] = -torch.inf
        if reasoner.unreadable_ids is not None:
            scores = scores.masked_fill(reasoner.unreadable_ids, -torch.inf)
        return scores.argmax(dim=-1, keepdim=True), None


@dataclass(frozen=True)
class TeacherOutput:
    """Output of the teacher's forward pass over the chain of thought and the answer.

    Args:
        hidden: [batch, 1 + steps + answer, hidden], hidden states of the last layer; the first
            column is the last state of the question.
        before_answer: [layers, batch, hidden], hidden states of all layers at the last token before
            the answer; None unless requested.
        steps, answer: keys and values of the chain of thought and of the answer, detached.
        queries: recorded queries of the answer tokens or of all tokens; None unless requested.
    """

    hidden: Tensor
    before_answer: Tensor | None
    steps: KeyValues
    answer: KeyValues
    queries: QueryRecord | None


def prefill_question(reasoner: ReasonerBase, batch: Batch) -> tuple[MaskedCache, Tensor]:
    """Prefill the question once, for teacher and student.

    Returns:
        KV(Q), the KV cache of the question, and its last hidden state [batch, 1, hidden].
    """
    start = MaskedCache.empty(batch["question"].shape[0], batch["question"].device)
    output, context = reasoner.extend(
        start, reasoner.embed(batch["question"]), batch["question_mask"]
    )
    return context, output.last_hidden_state[:, -1:]


def teacher_forward(
    reasoner: ReasonerBase,
    question: tuple[MaskedCache, Tensor],
    batch: Batch,
    layers: bool = False,
    queries: Observers | None = None,
) -> TeacherOutput:
    """Run the teacher, Q | C | "The answer is:" a EOS, with teacher forcing.

    Args:
        question: result of `prefill_question`; the teacher continues from its KV cache.
        batch: see `kava.reasoning.batching.collate`.
        layers: also return the hidden states of all layers at the last token before the answer.
        queries: also record the queries of the answer tokens, or with `later_steps` of all tokens,
            the answer's being the last.
    """
    ids = torch.cat((batch["steps"], batch["answer"]), dim=1)
    mask = torch.cat((batch["steps_mask"], batch["answer_mask"]), dim=1)
    start, width = question[0].columns, batch["steps"].shape[1]
    # Listing 1 needs the queries of the answer segment only, which follows the chain of thought.
    columns = slice(width if queries == "answer" else 0, None)
    with record_queries(columns) if queries else nullcontext() as record:
        output, after = reasoner.extend(question[0], reasoner.embed(ids), mask, layers)
    # The teacher is trained by its own cross-entropy only: both distillation losses see detached
    # states.
    pairs = cache.key_values(after.past_key_values, start)
    pairs = [(keys.detach(), values.detach()) for keys, values in pairs]
    return TeacherOutput(
        hidden=torch.cat((question[1], output.last_hidden_state), dim=1),
        before_answer=reasoner.states_before_answer(output, width, batch) if layers else None,
        steps=[(keys[:, :, :width], values[:, :, :width]) for keys, values in pairs],
        answer=[(keys[:, :, width:], values[:, :, width:]) for keys, values in pairs],
        queries=record,
    )


def label_loss(
    reasoner: ReasonerBase, hidden: Tensor, batch: Batch, name: str, count: Tensor
) -> Tensor:
    """Return the cross-entropy over a set of labels; logits are computed at these positions only.

    Args:
        hidden: [batch, columns, hidden], hidden states of the last layer.
        batch: holds the labels as `{name}_rows`, `{name}_columns` and `{name}_ids`.
        name: `teacher` or `answer`.
        count: number of these labels in the whole batch.
    """
    states = hidden[batch[f"{name}_rows"], batch[f"{name}_columns"]]
    return cross_entropy(reasoner, states, batch[f"{name}_ids"], count)


def eot_suffix(reasoner: ReasonerBase, question: MaskedCache) -> Suffix:
    """Return what follows the latents at inference: <eot> alone."""
    mask = question.attention_mask.new_ones(question.attention_mask.shape[0], 1)
    return Suffix(reasoner.special("eot").expand(*mask.shape, -1), mask)


def latent_embeds(reasoner: ReasonerBase, state: LatentState) -> Tensor:
    """Return the embeddings of <bot>, the latents in the last pass and <eot>.

    As input after the question, they yield the keys and values of the last pass.

    Returns:
        [batch, 2 + latents, hidden].
    """
    latents = state.inputs[-1]
    bot, eot = (reasoner.special(name).expand(len(latents), 1, -1) for name in ("bot", "eot"))
    return torch.cat((bot, latents, eot), dim=1)


def student_suffix(
    reasoner: ReasonerBase, batch: Batch, layers: bool = False, steps: bool = False
) -> Suffix:
    """Return what follows the student's latents: <eot> and the answer.

    Args:
        batch: see `kava.reasoning.batching.collate`.
        layers: request the hidden states of all layers in the last pass.
        steps: put the chain of thought of the batch between <eot> and the answer.
    """
    ids, mask = batch["answer"], batch["answer_mask"]
    if steps:
        ids = torch.cat((batch["steps"], ids), dim=1)
        mask = torch.cat((batch["steps_mask"], mask), dim=1)
    eot = reasoner.special("eot").expand(ids.shape[0], 1, -1)
    mask = torch.nn.functional.pad(mask, (1, 0), value=True)
    return Suffix(torch.cat((eot, reasoner.embed(ids)), dim=1), mask, layers)


def prompt_ids(reasoner: ReasonerBase, batch: int, device: torch.device) -> Tensor:
    """Return the token ids of "The answer is:" for every example, [batch, prompt]."""
    ids = torch.tensor(reasoner.encoder.prompt).to(device, non_blocking=True)
    return ids.expand(batch, -1)
