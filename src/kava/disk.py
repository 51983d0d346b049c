"""How much disk a run's folder takes, from the number of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kava import memory
from kava.recipe import Recipe

#: Bytes of a line of `metrics.jsonl`, about (ours: 200 to 300 in this project's runs). Each
#: checkpoint holds the lines so far as well.
LOG_LINE = 300
#: Checkpoints to resume from that the trainer keeps.
KEPT = 2


@dataclass(frozen=True)
class Disk:
    """Bytes of a run's folder.

    done: once it is trained.
    training: the most while it is trained.
    """

    done: int
    training: int


def estimate(recipe: Recipe, model: Any, steps: int) -> Disk:
    """Of one run of so many steps.

        checkpoint    4 per trained weight
        to resume     that, and AdamW's two moments, 8 per trained weight
        log           `LOG_LINE` per logged step
        left out      the tokenizer's files, predictions, small files

    The trainer keeps two checkpoints to resume from while it writes a third; they go once the
    last is written.

    Args:
        model: the recipe's, `kava.memory.without_values`.
    """
    _, trained = memory.count_weights(recipe, model)
    log = steps // recipe.train.log_every * LOG_LINE
    last = 4 * trained
    resumable = last + 8 * trained + log
    every = recipe.train.save_every
    saves = math.ceil(steps / every) if every else 0
    at_the_end = min(saves, KEPT) * resumable + last
    return Disk(last + log, max(min(saves, KEPT + 1) * resumable, at_the_end) + log)
