"""Train a recipe into a run folder (`kava.runs.folder`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.backbones import lora
from kava.reasoning import checkpoint
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import resolve
from kava.recipe.schema import Recipe
from kava.runs.folder import clear, create_or_resume, exclusive_lock
from kava.runs.layout import RESULT
from kava.system import distributed, sharded
from kava.system.environment import default_device, provenance
from kava.system.files import write_json
from kava.system.progress import Progress
from kava.training.arguments import check_reports, rows_at_once
from kava.training.rows import data_record, read_rows
from kava.training.trainer import train
from kava.types import Example


def train_run(
    resolved: Recipe,
    run: Path,
    console: Console,
    resume: bool = False,
    device: str | None = None,
    announce: str = "",
) -> dict[str, Any]:
    """Train a recipe into a run folder; return the content of its `result.json`.

    Several processes train together; the main process writes.

    Args:
        announce: text that is printed after all checks have passed, before the first step.

    Raises:
        KavaError: for invalid input of any kind, or if another process uses this folder.
    """
    resolved = resolve(resolved)
    distributed.check_sharding()
    rows_at_once(resolved.train, distributed.world_size())
    where = device or default_device()
    reasoner = distributed.main_rank_first(lambda: Reasoner.build(resolved, where))
    rows, validation = distributed.main_rank_first(lambda: read_rows(resolved.data, console))
    data = data_record(resolved.data, rows, validation)
    targets = lora.describe_default(resolved, reasoner.recipe, reasoner.lm.config.model_type)
    announce = "\n".join(filter(None, (announce, targets)))
    return train_reasoner(
        reasoner, (rows, validation), data, resolved, run, console, resume, announce
    )


def train_reasoner(
    reasoner: Reasoner,
    rows: tuple[Sequence[Example], Sequence[Example]],
    data: dict[str, Any],
    resolved: Recipe,
    run: Path,
    console: Console,
    resume: bool,
    announce: str = "",
) -> dict[str, Any]:
    """Train a reasoner into a run folder; see `train_run`.

    Args:
        rows: the examples for training and for validation.
        data: what the result says about them.
        resolved: the recipe as it was given, which is saved in the run folder.
    """
    inputs = {"data": data, "backbone": reasoner.identity}
    distributed.on_main_rank(lambda: check_reports(resolved.train.report_to))
    with exclusive_lock(run), create_or_resume(run, resolved, resume, inputs):
        if announce:
            console.print(announce, highlight=False, markup=False)
        title = f"{resolved.method} (seed {resolved.seed})"
        measured = train(reasoner, *rows, run, resume, Progress(title, console))
        result = _describe_result(reasoner, data, measured)
        weights = sharded.gather_weights(reasoner)

        def write() -> None:
            checkpoint.check_finite(reasoner, weights, run)
            reasoner.record = result
            checkpoint.save(reasoner, run / "checkpoint", weights, run)
            write_json(run / RESULT, result)
            clear(run)

        distributed.on_main_rank(write)
    return result


def _describe_result(
    reasoner: Reasoner, data: dict[str, Any], measured: dict[str, Any]
) -> dict[str, Any]:
    resolved = reasoner.recipe
    return {
        "method": resolved.method,
        "seed": resolved.seed,
        "backbone": reasoner.identity,
        "trained_weights": sum(p.numel() for p in reasoner.parameters() if p.requires_grad),
        "data": data,
        **measured,
        "processes": distributed.world_size(),
        "scores": {},
        **provenance(),
    }
