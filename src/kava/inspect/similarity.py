"""Cosine similarity of the student's and the teacher's keys and values (a figure in KaVa)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kava.backbones.cache import KeyValues
from kava.inspect._numbers import Unavailable, numbers


@dataclass(frozen=True)
class Cosines:
    """Cosine similarity of keys, or of values, after the last iteration; None at empty slots.

    L is the number of layers, H of key/value heads, M of slots.

    heads: [L][H][M].
    layers: mean over heads, [L][M].
    slots: mean over heads and layers, [M].
    passes: the mean over everything, for each pass; the last one is of the numbers above.
    """

    heads: list[Any]
    layers: list[Any]
    slots: list[Any]
    passes: list[float]


@dataclass(frozen=True)
class Similarity:
    """Similarity of each slot's latent and the teacher's token that its head keeps there.

    keys, values: the similarity of the keys and of the values.
    notes: how they are compared, in sentences.
    """

    keys: Cosines
    values: Cosines
    notes: list[str]


def similarity(
    student: list[KeyValues], teacher: KeyValues, slot_masks: list[Tensor], notes: list[str]
) -> Similarity | Unavailable:
    """Compare student and teacher slot by slot.

    Args:
        student: for each pass, a pair of keys and values per layer, each [1, H, M, D].
        teacher: the compressed cache, of the same shape.
        slot_masks: [1, H, M] per layer, true where the teacher has a token.
    """
    if not any(bool(one.any()) for one in slot_masks):
        return Unavailable("the teacher read no step, so its compressed cache is empty")
    real = torch.stack([one[0] for one in slot_masks])
    keys, values = (_cosines(student, teacher, real, part) for part in (0, 1))
    return Similarity(keys, values, notes)


def _cosines(student: list[KeyValues], teacher: KeyValues, real: Tensor, part: int) -> Cosines:
    theirs = [pair[part][0] for pair in teacher]
    passes = [
        torch.stack([_cosine(o[part][0], t) for o, t in zip(ours, theirs, strict=True)])
        for ours in student
    ]
    heads = passes[-1]
    return Cosines(
        heads=numbers(heads, real),
        layers=numbers(heads.mean(1), real[:, 0]),
        slots=numbers(heads.mean((0, 1)), real[0, 0]),
        passes=[float(f"{one[real].mean():.4g}") for one in passes],
    )


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(student.float(), teacher.float(), dim=-1)
