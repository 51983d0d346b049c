"""Slices of the latents' KV cache: which part of it carries the answer.

A slice is the keys, the values or both, in a range of layers. Three shares say how much the answer
depends on it (names and thresholds: arXiv:2608.27265, read second-hand; the definitions are ours):

sufficiency   the slice of another question leads to that question's answer      at least 0.80
selectivity   everything but the slice leads to the other question's answer      at most 0.25
necessity     a right answer is share_lost if the slice is the mean over all questions at least 0.50
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kava.backbones.cache import KeyValues
from kava.errors import KavaError
from kava.evaluation.answers import after_marker, read_number
from kava.reasoning.answers import Answer

SUFFICIENT, SELECTIVE, NECESSARY = 0.80, 0.25, 0.50
_PARTS = {"keys": (0,), "values": (1,), "both": (0, 1)}
_FORM = re.compile(r"(keys|values|both)(?::(\d+)(?:-(\d+))?)?")


@dataclass(frozen=True)
class Slice:
    """Part of a KV cache.

    name: such as `keys`, `values_2-3` or `both_0`, with the layers counted from 0.
    parts: pairs of a layer and 0 for keys or 1 for values.
    """

    name: str
    parts: frozenset[tuple[int, int]]

    def combine(self, inside: KeyValues, outside: KeyValues) -> KeyValues:
        """Return `inside` in this slice and `outside` elsewhere, per layer keys and values."""
        both = (inside, outside)

        def half(layer: int, part: int) -> Tensor:
            return both[(layer, part) not in self.parts][layer][part]

        return [(half(i, 0), half(i, 1)) for i in range(len(outside))]

    def complement(self, layers: int) -> Slice:
        """Return everything but this slice, in a cache of that many layers."""
        return Slice(f"all_but_{self.name}", _whole_cache(layers) - self.parts)


def read_slice(text: str, layers: int) -> Slice:
    """Read a slice such as `keys`, `values:4` or `both:0-3`, for a backbone with that many layers.

    Raises:
        KavaError: it has another form, or layers that the backbone does not have.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise KavaError(
            f"--slice {text}: give keys, values or both, and a layer or a range of layers, such as "
            "values:4 or both:0-3",
            code="evaluation.bad-slice",
            key=text,
        )
    first = int(match[2]) if match[2] else 0
    last = int(match[3] or match[2]) if match[2] else layers - 1
    if not first <= last < layers:
        raise KavaError(
            f"--slice {text}: the layers of this backbone are 0 to {layers - 1}",
            code="evaluation.no-such-layer",
            key=text,
        )
    places = ((layer, part) for layer in range(first, last + 1) for part in _PARTS[match[1]])
    return Slice(text.replace(":", "_"), frozenset(places))


def usual_slices(layers: int) -> list[Slice]:
    """Return the slices that are measured by default: keys, values, and each half of the layers."""
    half = layers // 2
    halves = [f"both:0-{half - 1}", f"both:{half}-{layers - 1}"] if half else []
    return [read_slice(text, layers) for text in ("keys", "values", *halves)]


def rows(
    slices: Sequence[Slice], own: KeyValues, other: KeyValues, mean: KeyValues
) -> dict[str, Callable[[], KeyValues]]:
    """Return, by the name of the table row, the keys and values that replace those of the latents.

    Everything but a slice is a row of its own only if no other slice is the same part.

    Args:
        own: keys and values of the latents.
        other, mean: those of another question, and the mean over all questions, at the same
            positions.
    """
    found: dict[str, Callable[[], KeyValues]] = {}
    for one in slices:
        for exchanged in (one, complement_among(one, slices, len(own))):
            found[f"swapped_{exchanged.name}"] = lambda part=exchanged: part.combine(other, own)
        found[f"mean_{one.name}"] = lambda part=one: part.combine(mean, own)
    return found


def complement_among(one: Slice, slices: Sequence[Slice], layers: int) -> Slice:
    """Return the complement of a slice, as one of the given slices if it is equal to one."""
    rest = one.complement(layers)
    return next((other for other in slices if other.parts == rest.parts), rest)


def measure_slices(
    slices: Sequence[Slice],
    layers: int,
    answers: dict[str, list[Answer]],
    right: dict[str, list[bool]],
    partner_of: Sequence[int],
) -> list[dict[str, Any]]:
    """Compute sufficiency, selectivity and necessity of all latents and of each slice.

    Args:
        answers: for each row of the table, the answers in the order of the examples.
        right: which of them are right.
        partner_of: index of the question whose latents are swapped in.

    Returns:
        For each slice its `name`, the three shares (None where there is nothing to count), the
        numbers of questions that they are shares of, and whether all `passes`. `n` counts the
        questions whose own answer differs from that of their partner; `n_right` those that are
        answered correctly with all latents.
    """
    said = {name: [_answer_of(answer.text) for answer in given] for name, given in answers.items()}
    own = said["as_they_are"]
    pairs = [i for i, partner in enumerate(partner_of) if own[i] != own[partner]]
    correct = [i for i, hit in enumerate(right["as_they_are"]) if hit]

    def share_transferred(row: str) -> float | None:
        return _share(said[row][i] == own[partner_of[i]] for i in pairs)

    def share_lost(row: str) -> float | None:
        return _share(not right[row][i] for i in correct)

    names = [("latents", "swapped", "as_they_are", "mean")]
    for one in slices:
        rest = complement_among(one, slices, layers).name
        names.append((one.name, f"swapped_{one.name}", f"swapped_{rest}", f"mean_{one.name}"))
    found = []
    for name, exchanged, others, averaged in names:
        shares = share_transferred(exchanged), share_transferred(others), share_lost(averaged)
        found.append(
            {
                "name": name,
                **dict(zip(("sufficiency", "selectivity", "necessity"), shares, strict=True)),
                "n": len(pairs),
                "n_right": len(correct),
                "passes": None not in shares and _passes(*shares),
            }
        )
    return found


def _passes(sufficiency: Any, selectivity: Any, necessity: Any) -> bool:
    return sufficiency >= SUFFICIENT and selectivity <= SELECTIVE and necessity >= NECESSARY


def _answer_of(text: str) -> Any:
    """Return the value of an answer: the number after its last marker, otherwise its text."""
    number = read_number(after_marker(text) or "")
    return text if number is None else number


def _share(hits: Any) -> float | None:
    hits = list(hits)
    return round(sum(hits) / len(hits), 4) if hits else None


def _whole_cache(layers: int) -> frozenset[tuple[int, int]]:
    return frozenset((layer, part) for layer in range(layers) for part in (0, 1))
