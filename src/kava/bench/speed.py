"""The FLOPs per second that a training gets: measured by `kava bench train`, or given."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.bench.shapes import configuration
from kava.errors import KavaError
from kava.recipe import Train


@dataclass(frozen=True)
class Speed:
    """`share` of the machine's `rate` (FLOPs per second in large matrix products).

    source: where both come from, in words.
    """

    share: float
    rate: float
    source: str

    @property
    def flops_per_second(self) -> float:
        """Of the least FLOPs that a training needs: pads cost time and count for nothing."""
        return self.share * self.rate


@dataclass(frozen=True)
class Measured:
    """One recipe of a result file. `kind` says which trainings it stands for (`_kind`)."""

    kind: tuple
    speed: Speed
    accelerator: bool


@dataclass(frozen=True)
class Speeds:
    """Of any training: the measured one of its kind, else the given one, else none."""

    measured: Sequence[Measured] = ()
    given: Speed | None = None

    def of(self, method: str, adapter: str, shape: str, train: Train) -> Speed | None:
        """The fastest that was measured of this method, adapter and shape, trained like this.

        Args:
            shape: of the backbone, named (`kava.bench.shapes`).
        """
        wanted = method, adapter, configuration(shape), train
        found = [one.speed for one in self.measured if one.kind == _kind(*wanted, one.accelerator)]
        return max(found, key=lambda speed: speed.flops_per_second, default=self.given)


def speeds(files: Sequence[Path], share: float | None, rate: float | None) -> Speeds:
    """Of result files, and of a share and a rate for what is not in them.

    Raises:
        KavaError: one of share and rate without the other, or not possible; a file that `kava
            bench train` has not written; files of different machines.
    """
    if (share is None) != (rate is None):
        raise KavaError("--share and --rate belong together: hours are FLOPs / (share x rate)")
    given = None
    if share is not None and rate is not None:
        if not 0 < share <= 1:
            raise KavaError(f"--share {share:g}: a share of the rate lies above 0 and up to 1")
        if not 0 < rate < math.inf:
            raise KavaError(f"--rate {rate:g}: FLOPs per second, such as 400e12")
        given = Speed(share, rate, f"a share of {share:g} of {rate:g} FLOP/s, as given")
    trees = [(file, read(file)) for file in files]
    machines = {machine(tree): file for file, tree in trees}
    if len(machines) > 1:
        told = ", ".join(f"{file} on {name}" for name, file in machines.items())
        raise KavaError(f"--measured: {told}; hours are those of one kind of machine")
    return Speeds([one for file, tree in trees for one in _measured(tree, file)], given)


def read(file: Path) -> dict[str, Any]:
    """A result of `kava bench train`.

    Raises:
        KavaError: it cannot be read, or is another file.
    """
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KavaError(f"{file}: cannot be read: {reason}") from None
    if not is_training(tree):
        raise KavaError(f"{file}: not a result of kava bench train (rows with a share, mfu)")
    return tree


def is_training(tree: Any) -> bool:
    """Whether a result is one of `kava bench train`."""
    parts = ("shapes", "recipes", "rows", "matrix_flops_per_second", "machine")
    if not isinstance(tree, dict) or not all(isinstance(tree.get(part), dict) for part in parts):
        return False
    rows = tree["rows"]
    complete = all(rows.keys() <= tree[part].keys() for part in parts[:4])
    return (
        bool(rows)
        and complete
        and all(isinstance(row, dict) and "mfu" in row for row in rows.values())
    )


def machine(tree: dict[str, Any]) -> str:
    """What a result was measured on: the accelerator, or else the processor."""
    return tree["machine"].get("accelerator") or str(tree["machine"].get("processor"))


def _measured(tree: dict[str, Any], file: Path) -> list[Measured]:
    found = []
    for name, row in tree["rows"].items():
        recipe, shape = tree["recipes"][name], tree["shapes"][name]
        train = Train.model_validate(recipe["train"])
        try:
            config = configuration(shape)
        except KavaError:  # a folder of another machine: it stands for nothing here
            continue
        rows, accelerator = row["rows"] // row["micro_batches"], "accelerator" in tree["machine"]
        source = f"measured on {machine(tree)}, {file.name}: {name}, {rows} rows at once, "
        kind = _kind(recipe["method"], recipe["adapter"], config, train, accelerator)
        rate = tree["matrix_flops_per_second"][name]
        source += f"{100 * row['mfu']:.1f} % of {rate:.3g} FLOP/s"
        found.append(Measured(kind, Speed(row["mfu"], rate, source), accelerator))
    return found


def _kind(method: str, adapter: str, config: Any, train: Train, accelerator: bool) -> tuple:
    """What a speed depends on, but for the micro-batch and lengths."""
    text = config.get_text_config()
    shape = tuple(getattr(text, name, None) for name in _SHAPE)
    precision = train.precision
    if precision == "auto":
        precision = "bf16" if accelerator else "fp32"
    how = train.gradient_checkpointing, train.group_by_length
    return (method, adapter, precision, *how, *shape)


_SHAPE = (
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size",
    "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
