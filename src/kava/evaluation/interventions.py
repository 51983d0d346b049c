"""What can be done to latents between thinking and answering.

An answer sees the latents only through their keys and values in the cache: those of the last pass.
An intervention puts others in their place; question and <bot> stay as they are. Then <eot> is read
again, because its own keys and values come from the latents too, and the answer follows.

What is drawn depends on the example's place in the whole set and on the seed alone, never on what
shares its batch.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kava.backbones import cache, rope
from kava.backbones.cache import KeyValues
from kava.backbones.thought import Thought
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.reasoner import Reasoner


@dataclass(frozen=True)
class Latents:
    """Latents of a batch as the cache holds them.

    before: the thought that they follow, which ends with <bot>.
    key_values: one pair of [B, H, M, D] per layer.
    positions: [B, M], where each stands.
    """

    before: Thought
    key_values: KeyValues
    positions: Tensor

    @classmethod
    def of(cls, thinking: ReasoningResult) -> Latents:
        """The latents of a method that ends its thinking with them and <eot>."""
        count, end = thinking.latent_states.shape[1], thinking.thought.columns - 1
        before = thinking.thought.crop(end - count)
        return cls(
            before,
            cache.key_values(thinking.thought.past_key_values, end - count, end),
            before.next_position[:, None] + torch.arange(count, device=before.next_position.device),
        )

    def moved(self, model: PreTrainedModel, to: Tensor) -> KeyValues:
        """Their keys and values as they would be at other positions [B, M]; see `rotary.moved`."""
        return rope.reposition_keys(model, self.key_values, self.positions, to)


@dataclass(frozen=True)
class Scene:
    """What an intervention may use. `own` and `other` have the same shapes, row by row.

    other: latents of each row's partner, another question.
    draws: a source of chance for each row.
    """

    model: PreTrainedModel
    own: Latents
    other: Latents
    draws: Sequence[random.Random]


Intervention = Callable[[Scene], KeyValues]


def as_they_are(scene: Scene) -> KeyValues:
    """No change."""
    return scene.own.key_values


def zeroed(scene: Scene) -> KeyValues:
    """Keys and values of zero: they still draw attention, and add nothing."""
    return [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in scene.own.key_values]


def noise(scene: Scene) -> KeyValues:
    """Each key and each value is a random direction, as long as the one that it replaces."""
    sources = [torch.Generator().manual_seed(draw.getrandbits(63)) for draw in scene.draws]

    def replaced(states: Tensor) -> Tensor:
        drawn = [torch.randn(states.shape[1:], generator=source) for source in sources]
        random_ones = torch.stack(drawn).to(states.device)
        length = torch.linalg.vector_norm(states.float(), dim=-1, keepdim=True)
        short = torch.linalg.vector_norm(random_ones, dim=-1, keepdim=True)
        return (random_ones * length / short).to(states.dtype)

    return [(replaced(keys), replaced(values)) for keys, values in scene.own.key_values]


def shuffled(scene: Scene) -> KeyValues:
    """The latents of the same question in another order, each turned to the place it comes to.

    Never in the order that they had, where there is more than one. Without a rotation this changes
    nothing: attention reads keys and values as a set (`left_out`).
    """
    places = scene.own.positions
    order = torch.tensor([another_order(places.shape[1], draw) for draw in scene.draws])
    order = order.to(places.device)
    index = order[:, None, :, None]
    taken = [
        tuple(states.take_along_dim(index, dim=2) for states in pair)
        for pair in scene.own.key_values
    ]
    return rope.reposition_keys(scene.model, taken, places.gather(1, order), places)


def swapped(scene: Scene) -> KeyValues:
    """The latents of another question, turned to where this question's own stood."""
    return scene.other.moved(scene.model, scene.own.positions)


def removed(scene: Scene) -> KeyValues:
    """No latents: <eot> follows <bot>. The same as latents that a mask hides (ours)."""
    return [(keys[:, :, :0], values[:, :, :0]) for keys, values in scene.own.key_values]


#: By the name of the row in a table.
INTERVENTIONS: dict[str, Intervention] = {
    function.__name__: function
    for function in (as_they_are, zeroed, noise, shuffled, swapped, removed)
}


def left_out(model: PreTrainedModel) -> dict[str, str]:
    """Interventions that mean nothing for a backbone, and why."""
    if rope.uses_rope(model):
        return {}
    return {
        "shuffled": f"keys of {model.config.model_type} are not rotated, so that an answer reads "
        "the latents as a set, without an order"
    }


@torch.no_grad()
def replace_latents(
    reasoner: Reasoner, thinking: ReasoningResult, own: Latents, pairs: KeyValues
) -> ReasoningResult:
    """The same thinking with other keys and values in place of the latents'.

    Args:
        own: the latents of `thinking`.
        pairs: one pair of [B, H, m, D] per layer; m need not be M.
    """
    known = own.before.attention_mask
    changed = Thought(
        cache.from_key_values(
            cache.cat_columns(cache.key_values(own.before.past_key_values), pairs)
        ),
        torch.cat((known, known.new_ones(len(known), pairs[0][0].shape[2])), dim=1),
    )
    eot = reasoner.special("eot").expand(len(known), 1, -1)
    _, after = reasoner.extend(changed, eot, known.new_ones(len(known), 1))
    return dataclasses.replace(thinking, thought=after)


def partners(count: int, seed: int) -> list[int]:
    """For each of `count` examples another one; each is the partner of exactly one.

    The examples stand in a ring in a drawn order, and the next one is the partner.
    """
    ring = list(range(count))
    random.Random(f"partners/{seed}").shuffle(ring)
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [following[i] for i in range(count)]


def another_order(count: int, draw: random.Random) -> list[int]:
    """A drawn order of `count` slots that is not the one they have; with one slot there is none."""
    order = list(range(count))
    while order == list(range(count)) and count > 1:
        draw.shuffle(order)
    return order
