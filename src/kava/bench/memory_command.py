"""The command `kava bench memory`: count, print and write the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.bench import memory
from kava.bench.command import recipe_paths, settings_of, write_result
from kava.bench.shapes import Lengths
from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved
from kava.system.tables import terminal_table
from kava.system.text import format_bytes, format_count, print_text
from kava.training.memory import Memory

DEVICES = ("cuda", "cpu")
#: A note on what the numbers do not include.
LEFT_OUT = (
    "counted on tensors without values: storages that live at the same time, in a step like any "
    "but the first, on the widest of many micro-batches; the allocator's fragments, the kernels' "
    "workspaces and CUDA's half gigabyte are not in, and layers count uncompiled"
)


def bench_memory(
    paths: Sequence[str],
    settings: Sequence[str],
    shape: str | None,
    lengths: Lengths,
    sizes: Sequence[int],
    device: str,
    output: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Count the memory of each recipe's step for each micro-batch size; print and write it.

    Args:
        sizes: micro-batch sizes (numbers of examples); the recipe's own if empty.
        device: see `kava.bench.memory.count`.

    Raises:
        KavaError: an invalid recipe, shape, device or number of examples.
    """
    if device not in DEVICES:
        raise KavaError(
            f"--device {device}: must be {' or '.join(DEVICES)}",
            code="bench.unknown-device",
            key="--device",
        )
    if any(size < 1 for size in sizes):
        raise KavaError("--rows must be greater than 0", code="bench.not-above-0", key="--rows")
    recipes = {
        name: load_resolved(path, list(settings))
        for name, path in recipe_paths(paths, console).items()
    }
    rows: dict[str, dict[int, Memory]] = {}
    with console.status("counting") as status:
        for name, recipe in recipes.items():
            own = recipe.train.micro_batch_size or recipe.train.batch_size
            rows[name] = {}
            for size in sizes or [own]:
                status.update(f"counting {name}, {format_count(size, 'row')}")
                on = shape or recipe.backbone
                rows[name][size] = memory.count(recipe, on, lengths, size, device)
    console.print(terminal_table(_HEADINGS, _lines(rows)))
    print_text(console, LEFT_OUT)
    report = {
        "what": f"bytes that one training step holds at its peak, as on {device}",
        "left_out": LEFT_OUT,
        "device": device,
        "shapes": {name: shape or recipe.backbone for name, recipe in recipes.items()},
        "lengths": asdict(lengths),
        "drawn_micro_batches": memory.DRAWS,
        "recipes": {name: settings_of(recipe) for name, recipe in recipes.items()},
        "rows": {
            name: {str(size): {**asdict(one), "peak": one.total} for size, one in by_size.items()}
            for name, by_size in rows.items()
        },
    }
    return write_result(report, output, console)


def _lines(rows: dict[str, dict[int, Memory]]) -> list[list[str]]:
    return [
        [name, f"{size:,}", *map(format_bytes, (*astuple(one), one.total))]
        for name, by_size in rows.items()
        for size, one in by_size.items()
    ]


_HEADINGS = (
    "recipe", "rows", "weights", "gradients", "optimiser", "activations", "peak",
)  # fmt: skip
