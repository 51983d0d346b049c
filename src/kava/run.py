"""A recipe trained into a run folder (`kava.run_folder`), scored there, and opened again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kava import assets, checkpoint, hub, parallel, sharded
from kava.arguments import rows_at_once
from kava.data import load_examples, revision, rows_hash
from kava.errors import KavaError
from kava.evaluate.runner import Evaluation, evaluate
from kava.leaks import check_training_rows, normal
from kava.model import Reasoner
from kava.progress import Progress
from kava.provenance import provenance, write_json
from kava.recipe import Data, Recipe
from kava.run_folder import alone, check_scores, clear, prepared, read_result, writing_scores
from kava.tasks import Task
from kava.trainer import train
from kava.types import Example
from kava.watch import RESULT


def read_rows(data: Data, console: Console | None = None) -> tuple[list[Example], list[Example]]:
    """Training and validation rows of a recipe.

    Raises:
        KavaError: cannot be had; a validation row is a training row, in normal form; a test row
            is one (`kava.leaks`).
    """
    train_rows = load_examples(data.train, "train", limit=data.train_rows, options=data.options)
    check_training_rows(data, train_rows, console)
    if data.validation is None:
        return train_rows, []
    validation = load_examples(
        data.validation, "validation", limit=data.validation_rows, options=data.options
    )
    check_apart(train_rows, validation)
    return train_rows, validation


def check_apart(train_rows: Sequence[Example], validation: Sequence[Example]) -> None:
    """Raise a KavaError where a validation question, in normal form, is a training question."""
    normal_forms = {normal(e.question) for e in train_rows}
    shared = [e.question for e in validation if normal(e.question) in normal_forms]
    if shared:
        raise KavaError(
            f"data: {len(shared)} validation questions are training questions too, "
            f"such as {min(shared)[:80]!r}"
        )


def train_run(
    resolved: Recipe,
    run: Path,
    console: Console,
    resume: bool = False,
    device: str | None = None,
    announce: str = "",
) -> dict[str, Any]:
    """Train a recipe into a run folder; returns what `result.json` then holds.

    Several processes train together; the main one writes.

    Args:
        announce: said once nothing speaks against the training, before its first step.

    Raises:
        KavaError: bad input of any kind; another process works on this folder.
    """
    parallel.check_sharding()
    rows_at_once(resolved.train, parallel.processes())
    where = device or default_device()
    reasoner = parallel.main_first(lambda: Reasoner.build(resolved, where))
    rows, validation = parallel.main_first(lambda: read_rows(resolved.data, console))
    data = data_record(resolved.data, rows, validation)
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
        rows: for training, for validation.
        data: what the result says of them.
        resolved: the recipe as it was given; the run folder keeps it.
    """
    inputs = {"data": data, "backbone": reasoner.identity}
    with alone(run, console), prepared(run, resolved, resume, inputs):
        if announce:
            console.print(announce, highlight=False, markup=False)
        title = f"{resolved.method} (seed {resolved.seed})"
        measured = train(reasoner, *rows, run, resume, Progress(title, console))
        result = _result(reasoner, data, measured)
        weights = sharded.whole_weights(reasoner)

        def write() -> None:
            checkpoint.check_finite(reasoner, weights, run)
            reasoner.record = result
            checkpoint.save(reasoner, run / "checkpoint", weights, run)
            write_json(run / RESULT, result)
            clear(run)

        parallel.on_main(write)
    return result


def _result(reasoner: Reasoner, data: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    resolved = reasoner.recipe
    return {
        "method": resolved.method,
        "seed": resolved.seed,
        "backbone": reasoner.identity,
        "trained_weights": sum(p.numel() for p in reasoner.parameters() if p.requires_grad),
        "data": data,
        **measured,
        "processes": parallel.processes(),
        "scores": {},
        **provenance(),
    }


def score_run(
    reasoner: Reasoner,
    task: Task,
    run: Path,
    batch_size: int | None = None,
    timed_alone: int = 50,
    on_batch: Any = None,
) -> Evaluation:
    """Evaluate on a task; predictions and scores go into the run folder.

    Raises:
        KavaError: see `check_scores` and `evaluate`.
    """
    parallel.on_main(lambda: check_scores(run, task.name))
    settings = reasoner.recipe.eval
    result = evaluate(
        reasoner,
        task.examples,
        batch_size or settings.batch_size,
        settings.max_new_tokens,
        timed_alone=timed_alone,
        on_batch=on_batch,
    )

    def write() -> None:
        score = {
            "version": task.version,
            "split": task.split,
            "source": task.source,
            "sha256": rows_hash(task.examples),
            **result.summary,
            **provenance(),
        }
        result.write_predictions(run / "predictions" / f"{task.name}.jsonl", run)
        with writing_scores(run):
            written = read_result(run) or {"method": reasoner.recipe.method, "scores": {}}
            written.setdefault("scores", {})[task.name] = score
            write_json(run / RESULT, written)
            if (run / "checkpoint" / "kava.json").is_file():
                checkpoint.remember(run / "checkpoint", written)

    parallel.on_main(write)
    return result


def data_record(
    data: Data, rows: Sequence[Example], validation: Sequence[Example]
) -> dict[str, Any]:
    """What was trained and validated on: name, revision on the Hub, number and hash of the rows."""
    parts = {"train": (data.train, rows), "validation": (data.validation, validation)}
    return {
        part: {
            "source": name,
            "rows": len(examples),
            "revision": revision(name, data.options),
            "sha256": rows_hash(examples),
        }
        for part, (name, examples) in parts.items()
        if name is not None
    }


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value), to four places: tables round to one."""
    mean = sum(values) / len(values)
    square = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    return round(mean, 4), round(square**0.5, 4)


def default_device() -> str:
    """`cuda` where there is one and nobody asked for the CPU; of several processes each its own."""
    if parallel.processes() > 1:
        return parallel.device()
    return "cuda" if torch.cuda.is_available() and not parallel.asked_for_cpu() else "cpu"


def open_reasoner(
    path: str, backbone: str | None = None, dtype: str | torch.dtype | None = None
) -> Reasoner:
    """A run folder, a checkpoint, or a plain backbone (which writes its steps out).

    Checkpoints and backbones may lie on the Hub.

    Args:
        dtype: see `Reasoner.from_pretrained`.

    Raises:
        KavaError: the folder is none of these, or there is none; a dtype that is not possible.
    """
    how: dict[str, Any] = {"device": default_device(), "dtype": dtype}
    try:
        folder = assets.find(path)
    except KavaError:
        if hub.is_name(path) and hub.has_file(path, "kava.json"):
            return Reasoner.from_pretrained(path, backbone, **how)
        try:
            return Reasoner.from_backbone(path, **how)  # a Hub name, or an error
        except hub.NotHad as error:
            raise KavaError(
                f"{error.told}; give the folder of a run, a checkpoint or a model of transformers; "
                "for one on the Hub go online, and log in with `hf auth login`"
            ) from None
    if any((place / "kava.json").is_file() for place in (folder, folder / "checkpoint")):
        return Reasoner.from_pretrained(path, backbone, **how)
    if (folder / "config.json").is_file():
        if backbone:
            raise KavaError(f"{folder}: a model of transformers, no adapter; leave out {backbone}")
        return Reasoner.from_backbone(path, **how)
    raise KavaError(
        f"{folder}: neither a run or checkpoint of kava (kava.json) nor a model of transformers "
        "(config.json)"
    )
