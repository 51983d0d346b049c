"""Which methods, backbones, adapters, precisions and numbers of processes the tests run together.

With `KAVA_COMBINATIONS=FOLDER` in its environment, a test run writes there each combination whose
training step or answer came to its end, and each backbone that was refused. `tools/combinations.py`
makes the page docs/reference/combinations.md from them.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: What one line of a file names, in this order.
AXES = ("kind", "method", "family", "adapter", "precision", "processes")
TRAINED, ANSWERED, REFUSED = KINDS = ("trained", "answered", "refused")


def record(folder: Path) -> None:
    """Write every new combination of this process into a file of its own, from now on."""
    from kava.backbones import compatibility
    from kava.errors import KavaError
    from kava.reasoning.reasoner import Reasoner

    folder.mkdir(parents=True, exist_ok=True)
    file, known = folder / f"{os.getpid()}.jsonl", set()

    def write(*combination: str) -> None:
        if combination not in known:
            known.add(combination)
            with file.open("a") as lines:
                lines.write(json.dumps(combination) + "\n")

    def watched(kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(self: Reasoner, *args: Any, **kwargs: Any) -> Any:
            result = method(self, *args, **kwargs)
            write(kind, *_of(self, kind))
            return result

        return run

    def judged(check: Callable[[Any], None], config_of: Callable[[Any], Any]) -> Any:
        @functools.wraps(check)
        def run(subject: Any) -> None:
            try:
                check(subject)
            except KavaError as error:
                write(REFUSED, error.code, config_of(subject).model_type)
                raise

        return run

    Reasoner.forward = watched(TRAINED, Reasoner.forward)
    Reasoner._generate_tokens = watched(ANSWERED, Reasoner._generate_tokens)
    compatibility.check_config = judged(compatibility.check_config, lambda config: config)
    compatibility.check = judged(compatibility.check, lambda model: model.config)


def _of(reasoner: Any, kind: str) -> tuple[str, ...]:
    """Name what a reasoner consists of and how it runs."""
    recipe, processes = reasoner.recipe, os.environ.get("WORLD_SIZE", "1")
    half = torch.is_autocast_enabled(reasoner.device.type)
    stored = {p.dtype for p in reasoner.lm.parameters() if p.dtype.is_floating_point}
    precision = "bf16 autocast" if half else "fp32" if stored == {torch.float32} else "bf16 weights"
    if kind == TRAINED and any(hasattr(p, "full_tensor") for p in reasoner.lm.parameters()):
        processes += " (FSDP2)"
    return recipe.method, reasoner.lm.config.model_type, recipe.adapter, precision, processes


def read(folder: Path) -> set[tuple[str, ...]]:
    """Return all combinations that a test run wrote."""
    lines = (line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines())
    return {tuple(json.loads(line)) for line in lines}
