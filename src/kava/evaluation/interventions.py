"""Interventions on latents between reasoning and answering.

An answer sees the latents only through their keys and values in the KV cache, which come from the
last forward pass. An intervention replaces these; the question and <bot> are unchanged. Then <eot>
is processed again, because its own keys and values depend on the latents, and the answer follows.

Random draws depend only on the example's index in the whole set and on the seed, never on the other
examples in its batch.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kava.backbones import cache, rope
from kava.backbones.cache import KeyValues
from kava.backbones.masked_cache import MaskedCache
from kava.errors import KavaError
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.methods import LatentMethod
from kava.reasoning.reasoner import Reasoner


@dataclass(frozen=True)
class Latents:
    """The latents of a batch as the KV cache holds them.

    context: the KV cache that precedes them, which ends with <bot>.
    key_values: per layer, a pair of keys and values: [batch, kv_heads, latents, head_dim].
    positions: position of each latent: [batch, latents].
    """

    context: MaskedCache
    key_values: KeyValues
    positions: Tensor

    @staticmethod
    def count(reasoning: ReasoningResult) -> Tensor:
        """Return the number of latents of each question, [batch]."""
        states = reasoning.latent_states
        assert states is not None  # `ablation.check` refuses methods without latents
        return reasoning.cache.attention_mask[:, -states.shape[1] - 1 : -1].sum(1)

    @classmethod
    def from_reasoning(cls, reasoning: ReasoningResult) -> Latents:
        """Extract the latents of a method whose reasoning ends with latents and <eot>.

        Raises:
            KavaError: some questions have fewer latents than others.
        """
        counts = cls.count(reasoning)
        count, end = int(counts.max()), reasoning.cache.columns - 1
        if (counts < count).any():
            raise KavaError(
                "ablate: the questions of a batch have different numbers of latents",
                code="evaluation.latents-vary",
                key="latents",
            )
        before = reasoning.cache.crop(end - count)
        return cls(
            before,
            cache.key_values(reasoning.cache.past_key_values, end - count, end),
            before.next_position[:, None] + torch.arange(count, device=before.next_position.device),
        )

    def at_positions(self, model: PreTrainedModel, positions: Tensor) -> KeyValues:
        """Return the keys and values as they would be at these positions, [batch, latents].

        See `rope.reposition_keys`.
        """
        return rope.reposition_keys(model, self.key_values, self.positions, positions)


@dataclass(frozen=True)
class InterventionInputs:
    """What an intervention may use. Both sets of latents have the same shapes, row by row.

    own_latents: latents of this row's question.
    other_latents: latents of each row's partner, which is another question.
    mean: keys and values averaged over all questions, at the positions of this row's latents.
    draws: a random number generator for each row.
    """

    model: PreTrainedModel
    own_latents: Latents
    other_latents: Latents
    mean: KeyValues
    draws: Sequence[random.Random]


Intervention = Callable[[InterventionInputs], KeyValues]


def as_they_are(inputs: InterventionInputs) -> KeyValues:
    """Return the latents unchanged."""
    return inputs.own_latents.key_values


def zeroed(inputs: InterventionInputs) -> KeyValues:
    """Return keys and values of zero: they still receive attention, but contribute nothing."""
    return [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in inputs.own_latents.key_values]


def mean(inputs: InterventionInputs) -> KeyValues:
    """Return the mean over all questions, with keys moved to the positions of this question's."""
    return inputs.mean


def noise(inputs: InterventionInputs) -> KeyValues:
    """Replace each key and each value by a random direction of the same norm."""
    sources = [torch.Generator().manual_seed(draw.getrandbits(63)) for draw in inputs.draws]

    def random_directions(states: Tensor) -> Tensor:
        drawn = [torch.randn(states.shape[1:], generator=source) for source in sources]
        random_ones = torch.stack(drawn).to(states.device)
        length = torch.linalg.vector_norm(states.float(), dim=-1, keepdim=True)
        short = torch.linalg.vector_norm(random_ones, dim=-1, keepdim=True)
        return (random_ones * length / short).to(states.dtype)

    return [
        (random_directions(keys), random_directions(values))
        for keys, values in inputs.own_latents.key_values
    ]


def shuffled(inputs: InterventionInputs) -> KeyValues:
    """Return the latents of the same question in another order, keys moved to their new positions.

    The order always differs from the original one if there is more than one latent. Without rotary
    embeddings, this changes nothing: attention treats keys and values as a set (`left_out`).
    """
    places = inputs.own_latents.positions
    order = torch.tensor([draw_other_order(places.shape[1], draw) for draw in inputs.draws])
    order = order.to(places.device)
    index = order[:, None, :, None]
    permutation = [
        tuple(states.take_along_dim(index, dim=2) for states in pair)
        for pair in inputs.own_latents.key_values
    ]
    return rope.reposition_keys(inputs.model, permutation, places.gather(1, order), places)


def swapped(inputs: InterventionInputs) -> KeyValues:
    """Return the latents of another question, keys moved to the positions of this question's."""
    return inputs.other_latents.at_positions(inputs.model, inputs.own_latents.positions)


def removed(inputs: InterventionInputs) -> KeyValues:
    """Return no latents: <eot> follows <bot>. This equals latents that are masked out (ours)."""
    return [(keys[:, :, :0], values[:, :, :0]) for keys, values in inputs.own_latents.key_values]


#: Interventions by the name of their row in the table.
INTERVENTIONS: dict[str, Intervention] = {
    function.__name__: function
    for function in (as_they_are, zeroed, mean, noise, shuffled, swapped, removed)
}


#: The table's rows with fewer iterations, in `left_out`.
FEWER = "iterations"


def left_out(reasoner: Reasoner) -> dict[str, str]:
    """Return the interventions that have no meaning for a model, with the reason."""
    found = {}
    if not rope.uses_rope(reasoner.lm):
        found["shuffled"] = (
            f"keys of {reasoner.lm.config.model_type} are not rotated, so that an answer reads the "
            "latents as a set, without an order"
        )
    if not reasoner.method.fixed_size:
        found[FEWER] = "each question finds the number of its latents in its own iterations"
    return found


class Mean:
    """Mean of the latents' keys and values over all questions, whatever the sizes of the batches.

    Keys are averaged at positions counted from the first latent on: those of another question stand
    elsewhere, where the rotary embedding has turned them otherwise.
    """

    def __init__(self) -> None:
        self.sums: list[tuple[Tensor, Tensor]] = []
        self.count = 0

    def add(self, model: PreTrainedModel, latents: Latents) -> None:
        """Add the latents of a batch."""
        pairs = latents.at_positions(model, _positions_from_zero(latents.positions))
        sums = [(k.double().sum(0), v.double().sum(0)) for k, v in pairs]
        if self.sums:
            both = zip(self.sums, sums, strict=True)
            sums = [(k + more_k, v + more_v) for (k, v), (more_k, more_v) in both]
        self.sums, self.count = sums, self.count + len(latents.positions)

    def at_positions_of(self, model: PreTrainedModel, like: Latents) -> KeyValues:
        """Return the mean at the positions of other latents, and in their shape and dtype."""
        pairs = [
            tuple(
                (total / self.count).to(own.dtype).expand_as(own)
                for total, own in zip(sums, of_layer, strict=True)
            )
            for sums, of_layer in zip(self.sums, like.key_values, strict=True)
        ]
        return rope.reposition_keys(
            model, pairs, _positions_from_zero(like.positions), like.positions
        )


def _positions_from_zero(positions: Tensor) -> Tensor:
    return torch.arange(positions.shape[1], device=positions.device).expand_as(positions)


@torch.no_grad()
def replace_latents(
    reasoner: Reasoner, reasoning: ReasoningResult, own: Latents, pairs: KeyValues
) -> ReasoningResult:
    """Return a reasoning result in which the keys and values of the latents are replaced.

    Args:
        own: the latents of `reasoning`.
        pairs: per layer, keys and values: [batch, kv_heads, m, head_dim]. m may differ from the
            number of latents.
    """
    known = own.context.attention_mask
    changed = MaskedCache(
        cache.from_key_values(
            cache.cat_columns(cache.key_values(own.context.past_key_values), pairs)
        ),
        torch.cat((known, known.new_ones(len(known), pairs[0][0].shape[2])), dim=1),
    )
    eot = reasoner.special("eot").expand(len(known), 1, -1)
    output, after = reasoner.extend(changed, eot, known.new_ones(len(known), 1))
    method = cast(LatentMethod, reasoner.method)  # `ablation.check` refuses the others
    prompt, text = method.begin_answer(reasoner, output.last_hidden_state[:, -1])
    return dataclasses.replace(reasoning, cache=after, prompt=prompt, prompt_text=text)


def partners(sizes: Sequence[int], seed: int) -> list[int]:
    """Return a partner with as many latents for each example; each is the partner of one other.

    The examples form a ring in a random order, and the next one in the ring with as many latents is
    the partner.

    Args:
        sizes: the number of latents of each example.
    """
    ring = list(range(len(sizes)))
    random.Random(f"partners/{seed}").shuffle(ring)
    following = {}
    for size in set(sizes):
        alike = [i for i in ring if sizes[i] == size]
        following |= dict(zip(alike, alike[1:] + alike[:1], strict=True))
    return [following[i] for i in range(len(sizes))]


def draw_other_order(count: int, draw: random.Random) -> list[int]:
    """Draw an order of `count` slots that differs from the current one, if there are several."""
    order = list(range(count))
    while order == list(range(count)) and count > 1:
        draw.shuffle(order)
    return order
