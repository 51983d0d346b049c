"""Base class of the eviction methods, and the top-k selection that they share.

Each method has a file of its own that computes the scores; everything else is here. Each layer and
each key/value head is compressed separately (KaVa, arXiv:2510.02312, Listing 1; see docs/papers.md,
Compressing the teacher's cache).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kava.shapes import Bool, Float, Int

Observers = Literal["answer", "later_steps"]


@dataclass(frozen=True)
class EvictionInputs:
    """Inputs from which an eviction method computes its scores, for one layer.

    During decoding there is no answer yet. The last `recent` tokens then serve as observation
    tokens in place of the answer; they are themselves among the keys, and their attention is zero
    at their own columns.

    Args:
        keys: [batch, kv_heads, steps, head_dim], keys of the chain of thought.
        mask: [batch, steps], true at real tokens, false at padding.
        attention: [batch, kv_heads, answer, steps], attention of the answer tokens to the chain of
            thought, zero at padding; None if the method does not need it. With `observers:
            later_steps`, that of all tokens, zero within a token's own step.
        answer_mask: [batch, answer], true at the tokens whose attention is given.
        recent: number of last real tokens of each example that are kept regardless of their score.
        tokens: [batch, steps], token ids of the chain of thought; None during decoding.
    """

    keys: Float[Tensor, "batch kv_heads steps head_dim"]
    mask: Bool[Tensor, "batch steps"]
    attention: Float[Tensor, "batch kv_heads answer steps"] | None
    answer_mask: Bool[Tensor, "batch answer"]
    recent: int = 0
    tokens: Int[Tensor, "batch steps"] | None = None


@dataclass
class Eviction(ABC):
    """Base class of every eviction method.

    Args:
        lam: lambda of R-KV, the weight of importance against redundancy. Most methods ignore it.
    """

    lam: float = 0.1
    needs_attention = False
    #: Whose attention is needed: that of the answer, or also that of the later steps.
    observers: ClassVar[Observers] = "answer"
    #: Whether a slot combines several tokens (see `gather`), which is not possible during decoding.
    merges = False

    @abstractmethod
    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return a score for each token, [batch, kv_heads, steps]; the highest scores are kept.

        The caller handles padding and recent tokens.
        """

    def parts(self, inputs: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """Return the components of the score by name, each [batch, kv_heads, steps].

        They are used for inspection. `importance` is I, which is high where the answer attends;
        `redundancy` is R, as the eviction method defines it.
        """
        return {}

    def check(self, max_steps: int, budget: int) -> None:  # noqa: B027
        """Check that this method can compress `max_steps` tokens to `budget` tokens.

        Raises:
            KavaError: the method cannot do that.
        """

    def keep(
        self, inputs: EvictionInputs, budget: int
    ) -> tuple[Int[Tensor, "batch kv_heads {budget}"], Bool[Tensor, "batch kv_heads {budget}"]]:
        """Select the `budget` tokens with the highest scores for each example and head.

        Returns:
            columns: [batch, kv_heads, budget], indices of the kept tokens in the order of the text,
                0 in unfilled slots.
            slot_mask: [batch, kv_heads, budget], true in filled slots. An example with fewer real
                tokens than `budget` fills its first slots.
        """
        return self.select(self.score(inputs), inputs, budget)

    def select(
        self, scores: Float[Tensor, "batch kv_heads steps"], inputs: EvictionInputs, budget: int
    ) -> tuple[
        Int[Tensor, "batch kv_heads {budget}"],
        Bool[Tensor, "batch kv_heads {budget}"],
    ]:
        """Select `budget` tokens by their scores: the highest ones, unless a subclass differs."""
        return select_top_k(scores, inputs, budget)

    def gather(
        self,
        states: Float[Tensor, "batch kv_heads steps head_dim"],
        columns: Int[Tensor, "batch kv_heads latents"],
        slot_mask: Bool[Tensor, "batch kv_heads latents"],
        mask: Bool[Tensor, "batch steps"],
    ) -> Float[Tensor, "batch kv_heads latents head_dim"]:
        """Return the keys or values of each slot, zero in unfilled slots.

        By default, a slot has those of its own token. A subclass that combines several tokens in a
        slot sets `merges`.

        Args:
            states: [batch, kv_heads, steps, head_dim], keys or values of the chain of thought.
            columns, slot_mask: [batch, kv_heads, latents], as returned by `keep`.
            mask: [batch, steps], the tokens that were compressed.
        """
        return gather(states, columns) * slot_mask[..., None]


def select_top_k(
    scores: Float[Tensor, "batch kv_heads steps"], inputs: EvictionInputs, budget: int
) -> tuple[Int[Tensor, "batch kv_heads {budget}"], Bool[Tensor, "batch kv_heads {budget}"]]:
    """Select the `budget` tokens with the highest scores, in the order of the text.

    Padding is never selected, and the last `recent` real tokens of each example always are. The
    code of R-KV returns the kept tokens in the order of their scores instead.

    Args:
        scores: [batch, kv_heads, steps].
        inputs: the inputs that the scores were computed from.
        budget: number of slots for each example and head.

    Returns:
        columns and slot_mask, as described in `Eviction.keep`.
    """
    columns = inputs.keys.shape[2]
    real = inputs.mask[:, None, :]
    scores = scores.float().masked_fill(~real, -torch.inf)
    scores = scores.masked_fill(_recent(inputs)[:, None, :], torch.inf)
    # A stable sort, so that the first of several equal scores wins. Equal scores do occur: all
    # tokens outside a sliding window receive no attention.
    first = scores.argsort(dim=-1, descending=True, stable=True)[..., :budget]
    is_real = real.expand_as(scores).gather(-1, first)
    # Padding gets an index behind every real token, so that filled slots come first.
    ordered = torch.where(is_real, first, columns).sort(dim=-1).values
    missing = budget - ordered.shape[-1]
    ordered = torch.nn.functional.pad(ordered, (0, max(missing, 0)), value=columns)
    slot_mask = ordered < columns
    return ordered.masked_fill(~slot_mask, 0), slot_mask


def _recent(inputs: EvictionInputs) -> Bool[Tensor, "batch steps"]:
    """Return a mask of the last `recent` real tokens of each example, [batch, steps]."""
    from_here_on = inputs.mask.flip(1).cumsum(1).flip(1)
    return inputs.mask & (from_here_on <= inputs.recent)


def evenly_spaced(inputs: EvictionInputs, budget: int) -> Bool[Tensor, "batch steps"]:
    """Mark the first token of each of `budget` spans of nearly equal length.

    An example with n tokens before its recent ones has its j-th of b spans begin at token
    ceil(j n / b), where b is the budget that the recent tokens leave. With n <= b, all are marked.

    Returns:
        [batch, steps], true at the marked tokens; recent tokens are not marked.
    """
    older = inputs.mask & ~_recent(inputs)
    count, left = older.sum(1, keepdim=True), max(budget - inputs.recent, 0)
    index = older.cumsum(1) - 1  # of each token among the older ones
    # Token i begins a span if a multiple of n / b lies in (i - 1, i].
    begins = (index * left).div(count.clamp(min=1), rounding_mode="floor") > (
        (index - 1) * left
    ).div(count.clamp(min=1), rounding_mode="floor")
    return older & ((index == 0) | begins | (count <= left)) & (left > 0)


def gather(
    states: Float[Tensor, "batch kv_heads steps head_dim"],
    columns: Int[Tensor, "batch kv_heads latents"],
) -> Float[Tensor, "batch kv_heads latents head_dim"]:
    """Gather the selected tokens of keys or values.

    Args:
        states: [batch, kv_heads, steps, head_dim].
        columns: [batch, kv_heads, latents], indices of the selected tokens.

    Returns:
        [batch, kv_heads, latents, head_dim]; zeros if there are no steps.
    """
    if states.shape[2] == 0:
        return states.new_zeros(*columns.shape, states.shape[-1])
    index = columns[..., None].expand(*columns.shape, states.shape[-1])
    return states.gather(2, index)
