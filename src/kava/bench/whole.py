"""What one whole training needs: steps, FLOPs at the least, memory, disk. Nothing is trained.

The least is that of the method's equations (`Method.work`) for rows of the real lengths, stage by
stage, times what the backbone's shape makes each of their units cost. A little less than that
runs: no gradient goes to frozen embeddings, nor through the last layer of a question that only the
cache is read of; less than one layer's share of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kava import adapter, hub, memory
from kava import backbone as backbones
from kava import cost as costs
from kava import disk as disks
from kava.bench import flops
from kava.bench.shapes import configuration
from kava.cost import Batch, Estimator, Rows
from kava.disk import Disk
from kava.errors import KavaError
from kava.memory import Memory, Traffic
from kava.methods._work import Work
from kava.model import Reasoner
from kava.recipe import Recipe

#: Bytes of a weight of a backbone that is not on this machine; the models of the paper are
#: published in bf16.
PUBLISHED_BYTES = 2


@dataclass(frozen=True)
class Fit:
    """A micro-batch of `rows`, and the memory that it takes."""

    rows: int
    memory: Memory


@dataclass(frozen=True)
class Whole:
    """Of one training, whatever its seed. None is what could not be found out; `notes` say why.

    rows: of an epoch.
    token_forwards, flops: the least, of real columns alone; `flops` with the backward pass.
    own: at the recipe's own micro-batch.
    fits: the largest micro-batch by bytes of memory, for each that was asked for; None if not even
        one row fits.
    backbone_bytes: of its files.
    """

    rows: int | None
    steps: int | None
    epochs: float | None
    token_forwards: int | None = None
    flops: float | None = None
    own: Fit | None = None
    fits: dict[float, Fit | None] = field(default_factory=dict)
    disk: Disk | None = None
    backbone_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Wholes:
    """Finds it out for several recipes; rows are read once. Downloads nothing.

    limits: bytes of memory that micro-batches shall fit into.
    shape: of all backbones (`kava.bench.shapes`); each recipe's own if None.
    """

    limits: Sequence[float] = ()
    shape: str | None = None
    _rows: Estimator = field(default_factory=Estimator)

    def of(self, recipe: Recipe) -> Whole:
        """Of a training by this recipe.

        Raises:
            KavaError: a shape that is not possible; a method that does not fit its recipe.
        """
        with hub.offline():
            return self._of(recipe)

    def _of(self, recipe: Recipe) -> Whole:
        rows, notes = self._rows.rows(recipe.data), []
        steps = costs.total_steps(recipe, rows.count)
        if rows.count is None:
            notes.append(f"FLOPs not known: {rows.why_not}")
        tokenizer, examples = costs.text(recipe, rows, notes)
        model, found = self._model(recipe, notes), Whole(rows.count, steps, _epochs(recipe, rows))
        works: list[tuple[float, Work]] = []
        with costs.tiny_reasoner(recipe, tokenizer) as tiny:
            if steps and rows.count:
                (whole,) = costs.sample(tiny, examples, size=costs.SAMPLE)
                works = least(tiny, whole, steps, rows.count)
                found = replace(found, token_forwards=round(sum(n * w.columns for n, w in works)))
            batches = costs.sample(tiny, examples)
            seen = costs.peak(tiny, batches)
        if model is not None:
            fitting = Fitting(recipe, model, seen, costs.widest(batches)["question"].shape[0])
            found = replace(
                found,
                flops=_flops(recipe, model, works, notes) if works else None,
                own=fitting.at(recipe.train.micro_batch_size or recipe.train.batch_size),
                fits=fitting.within(self.limits),
                disk=disks.estimate(recipe, model, steps) if steps else None,
                backbone_bytes=_backbone_bytes(recipe, model, self.shape is None),
            )
        return replace(found, notes=tuple(notes))

    def _model(self, recipe: Recipe, notes: list[str]) -> Any:
        config = configuration(self.shape) if self.shape else None
        try:
            return memory.without_values(recipe, config)
        except KavaError as error:
            notes.append(f"FLOPs, memory and disk not known: {error}")
            return None


def _flops(
    recipe: Recipe, model: Any, works: Sequence[tuple[float, Work]], notes: list[str]
) -> float | None:
    try:
        cost = flops.cost_of(adapter.bare(model), memory.projection(recipe, model), True)
    except KavaError as error:
        notes.append(str(error))
        return None
    return sum(times * cost.of(work) for times, work in works)


def least(reasoner: Reasoner, batch: Batch, steps: int, rows: int) -> list[tuple[float, Work]]:
    """The work of a training: that of a batch in each stage, and how often over.

    Args:
        batch: rows that stand for all, not staged.
        rows: of an epoch.
    """
    size, found = reasoner.recipe.train.batch_size, []
    for begin, end in costs.stages(reasoner, steps, rows):
        seen = costs.rows_seen(end, rows, size) - costs.rows_seen(begin, rows, size)
        staged = reasoner.staged(batch, begin / math.ceil(rows / size))
        found.append((seen / batch["question"].shape[0], reasoner.method.work(staged)))
    return found


@dataclass(frozen=True)
class Fitting:
    """Memory by micro-batch.

    seen: what went in with `rows` rows of the widest micro-batch; others are taken to be as wide.
    """

    recipe: Recipe
    model: Any
    seen: Traffic
    rows: int

    def at(self, rows: int) -> Fit:
        """With so many rows."""
        seen = self.seen.times(rows / self.rows)
        return Fit(rows, memory.estimate(self.recipe, seen, "cuda", self.model))

    def within(self, limits: Sequence[float]) -> dict[float, Fit | None]:
        """The largest micro-batch that the recipe's batch splits into and that fits, by bytes."""
        batch = self.recipe.train.batch_size
        fits = [self.at(rows) for rows in range(batch, 0, -1) if batch % rows == 0]
        return {
            size: next((fit for fit in fits if fit.memory.total <= size), None) for size in limits
        }


def _epochs(recipe: Recipe, rows: Rows) -> float | None:
    if recipe.train.epochs or not rows.count:
        return recipe.train.epochs
    return recipe.train.steps / math.ceil(rows.count / recipe.train.batch_size)


def _backbone_bytes(recipe: Recipe, model: Any, own: bool) -> int:
    """Of the backbone's weight files, if it is the recipe's own and here; else as published."""
    try:
        folder = Path(backbones.locate(recipe.backbone, recipe.revision)[0])
        if own and (files := list(folder.glob("*.safetensors"))):
            return sum(file.stat().st_size for file in files)
    except KavaError:
        pass  # not on this machine
    return PUBLISHED_BYTES * sum(w.numel() for w in adapter.of_backbone(model))
