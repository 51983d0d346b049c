"""What every method answers: how it is trained, and how it thinks before it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kava import cache
from kava.attention import QueryRecord, record_queries
from kava.cache import KeyValues
from kava.latents._state import Tail
from kava.losses.cross_entropy import cross_entropy
from kava.recipe import Recipe
from kava.thought import Thought

if TYPE_CHECKING:
    from kava.model import Reasoner

Batch = dict[str, Tensor]
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Thinking:
    """The end of thinking, ready for the answer.

    thought: what the answer continues from.
    prompt: token ids [B, P] fed first.
    prompt_text: the part of the answer's text that the prompt already holds.
    forward_passes: sequential calls after the question's prefill (T for KaVa; spec, Evaluation).
    prefill_passes: calls that belong to the prefill.
    latent_states: last layer's states of the latents after the last pass, [B, M, d], if any.
    """

    thought: Thought
    prompt: Tensor
    prompt_text: str
    forward_passes: int
    prefill_passes: int
    latent_states: Tensor | None = None


class Method(ABC):
    """One file in this folder. `IMPLEMENTATION` names the class."""

    #: The recipe's weights of distillation terms only act in methods that have them.
    uses_latents = False

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def check(self, reasoner: Reasoner) -> None:  # noqa: B027
        """Raise a KavaError where the backbone does not fit the recipe."""

    @abstractmethod
    def loss(self, reasoner: Reasoner, batch: Batch, counts: Tensor) -> Terms:
        """One training step: `loss` and every term that goes into the log, as scalars.

        Args:
            batch: see `kava.batching.collate`.
            counts: see `kava.batching.counts`; of the whole batch where gradients accumulate.
        """

    @abstractmethod
    def think(
        self, reasoner: Reasoner, question: Tensor, mask: Tensor, num_iterations: int | None = None
    ) -> Thinking:
        """Everything between a question ([B, Q], left-padded) and its answer."""


@dataclass(frozen=True)
class Written:
    """A teacher's pass over written steps and answer.

    hidden: [B, 1 + C + A, d], the last question state first.
    colon: [L, B, d], all layers at the last token of the answer prompt; None if not asked for.
    steps: keys and values of the C columns, detached.
    queries: of the A columns; None if not asked for.
    """

    hidden: Tensor
    colon: Tensor | None
    steps: KeyValues
    queries: QueryRecord | None


def read_question(reasoner: Reasoner, batch: Batch) -> tuple[Thought, Tensor]:
    """KV(Q), computed once for teacher and student, and its last state [B, 1, d]."""
    start = Thought.empty(batch["question"].shape[0], batch["question"].device)
    output, thought = reasoner.extend(
        start, reasoner.embed(batch["question"]), batch["question_mask"]
    )
    return thought, output.last_hidden_state[:, -1:]


def read_written(
    reasoner: Reasoner,
    question: tuple[Thought, Tensor],
    batch: Batch,
    layers: bool = False,
    queries: bool = False,
) -> Written:
    """The teacher: Q | C | "The answer is:" a EOS, continued from KV(Q)."""
    ids = torch.cat((batch["steps"], batch["answer"]), dim=1)
    mask = torch.cat((batch["steps_mask"], batch["answer_mask"]), dim=1)
    start, width = question[0].columns, batch["steps"].shape[1]
    with record_queries(slice(width, None)) as record:
        output, after = reasoner.extend(question[0], reasoner.embed(ids), mask, layers)
    pairs = cache.key_values(after.past_key_values, start, start + width)
    return Written(
        hidden=torch.cat((question[1], output.last_hidden_state), dim=1),
        colon=reasoner.colon_states(output, width) if layers else None,
        steps=cache.detach(pairs),
        queries=record if queries else None,
    )


def label_loss(
    reasoner: Reasoner, hidden: Tensor, batch: Batch, name: str, count: Tensor
) -> Tensor:
    """CE over the labels called `name`, logits computed at those positions only."""
    states = hidden[batch[f"{name}_rows"], batch[f"{name}_columns"]]
    return cross_entropy(reasoner.logits(states), batch[f"{name}_ids"], count)


def answer_tail(reasoner: Reasoner, batch: Batch, layers: bool) -> Tail:
    """<eot> and the answer, as the student's end."""
    eot = reasoner.special("eot").expand(batch["answer"].shape[0], 1, -1)
    mask = torch.nn.functional.pad(batch["answer_mask"], (1, 0), value=True)
    return Tail(torch.cat((eot, reasoner.embed(batch["answer"])), dim=1), mask, layers)


def prompt_ids(reasoner: Reasoner, batch: int, device: torch.device) -> Tensor:
    """ "The answer is:" for every row, [B, P]."""
    return torch.tensor(reasoner.encoder.prompt, device=device).expand(batch, -1)
