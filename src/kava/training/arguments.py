"""Convert a recipe to the Trainer's arguments, and check what must hold before training."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import TrainingArguments

from kava.errors import KavaError, install, unknown_name
from kava.reasoning import batching, context_window
from kava.reasoning.reasoner import Reasoner
from kava.recipe import registry
from kava.recipe.schema import Recipe, Train
from kava.runs import resume
from kava.system import distributed
from kava.types import Example


def arguments(
    recipe: Recipe, run: Path, device: torch.device, validate: bool, rows: int
) -> TrainingArguments:
    """Convert a recipe to `TrainingArguments`.

    Args:
        rows: number of examples in a process's micro-batch.

    Raises:
        KavaError: if a single process would train on another GPU than its first.
    """
    settings = recipe.train
    on_gpu, processes = device.type == "cuda", distributed.world_size()
    if on_gpu and processes == 1 and device.index:
        raise KavaError(
            f"a process trains on its first GPU, not on {device}; move the model to cuda:0, or "
            f"make only that GPU visible to the process: CUDA_VISIBLE_DEVICES={device.index}",
            code="training.other-gpu",
            key=str(device),
        )
    made = TrainingArguments(
        output_dir=str(run / "checkpoints"),
        num_train_epochs=settings.epochs or 1.0,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=settings.batch_size // (rows * processes),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        lr_scheduler_type=_SCHEDULES.get(settings.schedule, settings.schedule),
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip,
        bf16=settings.autocasts(device.type),
        use_cpu=not on_gpu,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=settings.log_every,
        logging_first_step=True,  # and the last step: kava.training.callbacks.Record
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate and recipe.eval.every else "no",
        eval_steps=recipe.eval.every,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 500,
        save_total_limit=resume.MAX_CHECKPOINTS,
        report_to=settings.report_to or "none",
        project="kava",
        run_name=run.resolve().name,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},  # copies from pinned memory
        # The first stages of a curriculum may use only some of the trained weights.
        ddp_find_unused_parameters=registry.find("methods", recipe.method)(recipe).stage(0)
        is not None,
        disable_tqdm=True,
    )
    if made.n_gpu > 1:  # otherwise the Trainer uses all visible GPUs, each with its own batch
        made._n_gpu = 1
    return made


#: Schedules that have another name in transformers, whose `constant` has no warmup.
_SCHEDULES = {"constant": "constant_with_warmup"}


def rows_at_once(settings: Train, processes: int) -> int:
    """Return the size of a process's micro-batch, such that a step has the recipe's `batch_size`.

    Raises:
        KavaError: if this number of processes cannot share a batch; names the numbers that can.
    """
    batch, micro = settings.batch_size, settings.micro_batch_size
    if batch // (micro or 1) % processes == 0:
        return micro or batch // processes
    fitting = [n for n in range(1, batch + 1) if batch // (micro or 1) % n == 0]
    smaller = [n for n in range(1, micro or 1) if batch % (n * processes) == 0]
    raise KavaError(
        f"train.batch_size {batch}"
        + (f" in micro-batches of {micro}" if micro else "")
        + f" cannot be split among {processes} processes; valid numbers of processes: "
        + ", ".join(map(str, fitting))
        + (f"; or train.micro_batch_size {' or '.join(map(str, smaller))}" if smaller else "")
        + ("; or train.micro_batch_size=null" if micro and batch % processes == 0 else ""),
        code="training.uneven-processes",
        key="train.batch_size",
    )


def check_schedule(reasoner: Reasoner, longest: int, rows: int) -> None:
    """Raise an error if training ends before the method's last stage, the one used at inference.

    Args:
        longest: number of tokens of the longest chain of thought.
        rows: number of examples in an epoch.

    Raises:
        KavaError: says how many epochs the stages need.
    """
    recipe, needed = reasoner.recipe, reasoner.method.last_stage_at(longest)
    per_epoch = recipe.train.steps_per_epoch(rows)
    epochs = recipe.train.epochs or recipe.train.total_steps(rows) / per_epoch
    if needed and epochs <= needed:
        raise KavaError(
            f"method_options: the last stage of '{recipe.method}' begins after {needed:.2f} epochs "
            f"but the training ends after {epochs:.2f} epochs of {per_epoch} steps; train longer, "
            "or make the stages shorter",
            code="training.too-short",
            key="method_options",
        )


def check_steps(
    reasoner: Reasoner, examples: Sequence[Example], rows: Sequence[batching.Row], console: Console
) -> None:
    """Print a warning if the method learns from chains of thought and no training example has one.

    A single example without one is common. If all of them lack it, a teacher only answers and L_KV
    compares nothing, and neither would be noticed. The usual reason is a chain of thought that is a
    single text, which is then the last step and dropped.
    """
    if not reasoner.method.uses_steps or any(row.steps for row in rows):
        return
    has_steps = any(example.steps for example in examples)
    line = (
        f"data.train: no example has a chain of thought for '{reasoner.recipe.method}' to learn "
        "from"
    )
    if has_steps:
        line += (
            " after its last step is dropped; set drop_last_step=false, or split the text into "
            "steps"
        )
    console.print(line, highlight=False, markup=False)


def check_lengths(
    reasoner: Reasoner, rows: Sequence[batching.Row], console: Console
) -> Sequence[batching.Row]:
    """Return the examples that fit into the positions of the backbone.

    Learned position embeddings are a table with a fixed length. Rotary embeddings continue, to
    positions that the backbone was not trained on, at a cost that grows with the square of the
    length. The positions are those of the method's own forward passes, of teacher and student, in
    the stage that needs the most.

    Raises:
        KavaError: an example needs more positions and `data.too_long` is `error`, or all of them
            do. Names the example, the positions it needs and those there are.
    """
    recipe, method = reasoner.recipe, reasoner.method
    positions = context_window.max_positions(reasoner)
    if positions is None:
        return rows
    latents = recipe.num_latents + 2 if method.uses_latents else 0
    long = [
        row for row in rows if row.columns + latents > positions
    ]  # the most that a pass can hold
    train = recipe.train
    begins = stage_begins(reasoner, train.total_steps(len(rows)), len(rows)) if long else []
    epochs = [step / train.steps_per_epoch(len(rows)) for step in begins]
    lengths = {row.id: n for row, n in _positions(reasoner, long, epochs) if n > positions}
    if not lengths:
        return rows
    first, most = next(iter(lengths.items()))
    line = (
        f"row {first} takes {most:,} positions in training"
        + (f", with {recipe.num_latents} latents," * bool(latents))
        + f" and the backbone has {positions:,}"
    )
    if recipe.data.too_long == "error" or len(lengths) == len(rows):
        others = f" (and {len(lengths) - 1:,} more rows)" * (len(lengths) > 1)
        raise KavaError(
            f"data.train: {line}{others}; remove such rows, leave them out with "
            "data.too_long=skip, or use a backbone with more positions",
            code="training.row-too-long",
            key=first,
        )
    line = f"data.too_long: {len(lengths):,} of {len(rows):,} rows are left out, such as {line}"
    console.print(line.replace("such as row", "such as"), highlight=False, markup=False)
    return [row for row in rows if row.id not in lengths]


def stage_begins(reasoner: Reasoner, steps: int, rows: int) -> list[int]:
    """Return the steps at which a training on this number of examples enters each of its stages."""
    per_epoch = reasoner.recipe.train.steps_per_epoch(rows)
    stages = [reasoner.method.stage(step / per_epoch) for step in range(steps)]
    return [step for step in range(steps) if step == 0 or stages[step] != stages[step - 1]]


def _positions(
    reasoner: Reasoner, rows: Sequence[batching.Row], epochs: Sequence[float]
) -> Iterator[tuple[batching.Row, int]]:
    """Yield each example with the most positions of any of its forward passes at these epochs."""
    method = reasoner.method
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        batch = batching.collate(part, pad_id=0)
        draws = (torch.full((len(part),), draw, dtype=torch.float64) for draw in _DRAWS)
        staged = [
            method.apply_stage(batch, epoch, lambda drawn=drawn: drawn)
            for drawn in draws
            for epoch in epochs
        ]
        works = [method.work(one) for one in staged]
        known = [work for work in works if work is not None]
        if len(known) < len(works):  # no pass has more than the whole example and its latents
            latents = reasoner.recipe.num_latents + 2 if method.uses_latents else 0
            yield from ((row, row.columns + latents) for row in part)
            continue
        # A call on something else than the examples, such as simcot's on steps, is not longer.
        calls = [
            call
            for work in known
            for call in work.forward_passes
            if len(call.new_tokens) == len(part)
        ]
        ends = torch.stack(
            [(call.past_tokens + call.new_tokens) * (call.new_tokens > 0) for call in calls]
        )
        yield from zip(part, ends.amax(0).tolist(), strict=True)


_ROWS_AT_ONCE = 64
#: The smallest and largest number that a curriculum may draw: with the first, iCoT removes the
#: fewest additional tokens; with the second, Coconut keeps the example in its stage.
_DRAWS = (0.0, 1 - 2**-53)


def check_reports(names: list[str]) -> None:
    """Raise an error if a tracker in `train.report_to` is unknown or not installed.

    Raises:
        KavaError: names the tracker and the valid choices, or how to install it.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as known

    for name in names:
        if name not in known:
            raise unknown_name("train.report_to", name, known, code="training.unknown-tracker")
        try:
            known[name]()
        except (ImportError, RuntimeError):
            raise KavaError(
                f"train.report_to: {name} is not installed; {install('track')} (trackio, wandb,"
                " tensorboard)",
                code="training.tracker-not-installed",
                key=name,
            ) from None
