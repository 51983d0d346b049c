"""Training: a transformers Trainer around one module forward per step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, TrainerState

from kava import batching, checkpoint, preemption
from kava.errors import KavaError, unknown
from kava.evaluate.answers import HEADLINE
from kava.evaluate.runner import evaluate
from kava.model import Reasoner
from kava.progress import Progress
from kava.recipe import Recipe
from kava.types import Example

METRICS = "metrics.jsonl"


class StepTrainer(Trainer):
    """Trainer whose losses are sums over the whole batch's denominators, and which logs each term.

    Each micro-batch carries the denominators of all micro-batches of its step, on all processes,
    so that accumulated equals whole.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._restart_window()
        self.validation_accuracy: float | None = None
        self.seconds_in_validation = 0.0

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """The micro-batches of one step in its stage, each told the denominators of all."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._enter_stage()
            batches = [self._staged(batch, i) for i, batch in enumerate(batches)]
            parts = [self.model.method.counts(batch) for batch in batches]
            counts = {name: sum(part[name] for part in parts).to(device) for name in parts[0]}
            counts = self.accelerator.reduce(counts, "sum")
            for batch in batches:
                batch["counts"] = counts
        return batches, None

    def epoch_of(self, step: int) -> float:
        """How many epochs lie before an optimiser step."""
        return step / math.ceil(len(self.train_dataset) / self.model.recipe.train.batch_size)

    def _enter_stage(self) -> None:
        # From the step alone, so that a resumed run does what an uninterrupted one does.
        method, step = self.model.method, self.state.global_step
        stage = method.stage(self.epoch_of(step))
        if stage is None or step == 0 or stage == method.stage(self.epoch_of(step - 1)):
            return
        if method.options.reset_optimizer:
            self.optimizer.state.clear()

    def _staged(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        step, world = self.state.global_step, self.accelerator.num_processes
        place = index * world + self.accelerator.process_index
        draw = step * self.model.recipe.train.batch_size + place
        return self.model.staged(batch, self.epoch_of(step), draw)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one micro-batch; its terms are kept for the log, on the device."""
        terms = model(**inputs)
        if not self._terms:
            self._first_step = self.state.global_step
        for name, value in terms.items():
            if name != "loss":
                self._terms[name] = self._terms.get(name, 0) + value.detach()
        parts = ("question_mask", "steps_mask", "answer_mask")
        self._tokens = self._tokens + sum(inputs[part].sum() for part in parts)
        # Gradients are averaged over processes, and the denominators already count them all.
        loss = terms["loss"] * self.accelerator.num_processes
        return (loss, terms) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every term's mean since the last log, and the speed."""
        if "loss" in logs:
            steps = self.state.global_step - self._first_step
            names = sorted(self._terms)
            if names and steps:
                total = torch.stack([self._terms[name].float() for name in names])
                total = self.accelerator.reduce(total, "sum") / steps
                logs.update(zip(names, total.tolist(), strict=True))
            seconds = time.perf_counter() - self._since
            stage = self.model.method.stage(self.epoch_of(self.state.global_step - 1))
            if stage is not None:
                logs["stage"] = stage
            logs["tokens_per_second"] = round(float(self._tokens) / seconds, 1)
            if steps:
                logs["seconds_per_step"] = round(seconds / steps, 4)
            self._restart_window()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Accuracy on the validation rows by greedy generation, not a loss."""
        begin = time.perf_counter()
        settings = self.model.recipe.eval
        result = evaluate(
            self.model,
            self.eval_dataset,
            settings.batch_size,
            settings.max_new_tokens,
            rules=(HEADLINE,),
        )
        self.validation_accuracy = result.summary["accuracy"]
        metrics = {"validation_accuracy": self.validation_accuracy, "validation_n": result.n}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        seconds = time.perf_counter() - begin
        self.seconds_in_validation += seconds
        self._since += seconds
        return metrics

    def take_up(self, folder: str) -> bool:
        """Be where a checkpoint of the last step was; False if it is an earlier one.

        The Trainer itself, resuming one that lies within an epoch, trains a step too many.
        """
        state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        self._load_from_checkpoint(folder)
        for record in state.log_history:
            if record["step"] == state.global_step and "validation_accuracy" in record:
                self.validation_accuracy = record["validation_accuracy"]
        return True

    def _restart_window(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._tokens: Tensor | int = 0
        self._since, self._first_step = time.perf_counter(), 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load_weights(model or self.model, resume_from_checkpoint)


class Record(TrainerCallback):
    """Writes `metrics.jsonl` and feeds the progress bar."""

    def __init__(self, file: Path, progress: Progress):
        self.file, self.progress = file, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what an interrupted run logged after its last checkpoint."""
        _cut_after(self.file, state.global_step)
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more step on the bar."""
        self.progress.step(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """One line a log; a loss that is not finite stops the run."""
        record = {"step": state.global_step, **logs}
        if "train_runtime" not in logs:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
        self.progress.log(record)
        broken = [k for k, v in logs.items() if isinstance(v, float) and not math.isfinite(v)]
        if broken:
            raise KavaError(
                f"step {state.global_step}: {', '.join(broken)} is not finite; try a lower "
                "train.learning_rate (checkpoints saved before are kept)"
            )


class StopWhenAsked(TrainerCallback):
    """Ends a training at a step's boundary, with a checkpoint, once a stop was asked for.

    The steps since the last log are logged first, so that none is missing in what is resumed.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asked for during the step."""
        if preemption.is_asked():
            control.should_log = control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asked for during the validation that followed it."""
        if preemption.is_asked():
            control.should_save = control.should_training_stop = True


def train(
    reasoner: Reasoner,
    examples: Sequence[Example],
    validation: Sequence[Example],
    run: Path,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Train a reasoner by its recipe; checkpoints and metrics go into `run`.

    Returns:
        what was measured: `steps`, `train_seconds` (validation not counted), `rows`,
        `validation_accuracy` (percent) and its `validation_n`; of a resumed run `resumed_from`,
        the step after which `train_seconds` begin.

    Raises:
        KavaError: nothing to train on, or a loss that is not finite.
        Preempted: a stop was asked for (`kava.preemption`); what is done so far is saved.
    """
    if not examples:
        raise KavaError("data.train: no rows")
    recipe = reasoner.recipe
    rows = reasoner.encoder.rows(examples)
    check_schedule(reasoner, rows)
    trainer = StepTrainer(
        model=reasoner,
        args=arguments(recipe, run, reasoner.device, validate=bool(validation)),
        train_dataset=rows,
        eval_dataset=list(validation),
        data_collator=partial(batching.collate, pad_id=reasoner.tokenizer.pad_token_id),
        callbacks=[Record(run / METRICS, progress), StopWhenAsked()],
    )
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run / "tensorboard")
    start = last_checkpoint(run) if resume else None
    begin = time.perf_counter()
    with progress:
        if not (start and trainer.take_up(start)):
            trainer.train(resume_from_checkpoint=start)
        preemption.check()
        if validation and (not recipe.eval.every or trainer.state.global_step % recipe.eval.every):
            trainer.evaluate()
    seconds = time.perf_counter() - begin - trainer.seconds_in_validation
    reasoner.eval()
    resumed = {"resumed_from": int(start.rpartition("-")[2])} if start else {}
    return {
        **resumed,
        "steps": trainer.state.global_step,
        "rows": len(rows),
        "train_seconds": round(seconds, 2),
        "validation_accuracy": trainer.validation_accuracy,
        "validation_n": len(validation),
    }


def arguments(recipe: Recipe, run: Path, device: torch.device, validate: bool) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    settings = recipe.train
    on_gpu = device.type == "cuda"
    length = {"max_steps": settings.steps} if settings.steps else {}
    return TrainingArguments(
        output_dir=str(run / "checkpoints"),
        num_train_epochs=settings.epochs or 1.0,
        **length,
        per_device_train_batch_size=settings.micro_batch_size or settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip,
        bf16=settings.precision == "bf16" or (settings.precision == "auto" and on_gpu),
        use_cpu=not on_gpu,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate and recipe.eval.every else "no",
        eval_steps=recipe.eval.every,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 500,
        save_total_limit=2,
        report_to=settings.report_to or "none",
        project="kava",
        run_name=run.name,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
    )


def check_schedule(reasoner: Reasoner, rows: Sequence[batching.Row]) -> None:
    """Refuse a training that ends before the method's last stage, which answers are asked in.

    Raises:
        KavaError: says how many epochs the stages need.
    """
    recipe, longest = reasoner.recipe, max(len(row.steps) for row in rows)
    needed = reasoner.method.last_stage_at(longest)
    per_epoch = math.ceil(len(rows) / recipe.train.batch_size)
    epochs = recipe.train.epochs or recipe.train.steps / per_epoch
    if needed and epochs <= needed:
        raise KavaError(
            f"method_options: the last stage of '{recipe.method}' begins after {needed:.2f} epochs "
            f"and the training ends after {epochs:.2f} (of {per_epoch} steps); train longer, or "
            "make the stages shorter"
        )


def check_reports(names: list[str]) -> None:
    """Refuse a `train.report_to` that transformers does not know or that is not installed.

    Raises:
        KavaError: names it, and what would be right.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as known

    for name in names:
        if name not in known:
            raise unknown("train.report_to", name, known)
        try:
            known[name]()
        except (ImportError, RuntimeError):
            raise KavaError(
                f"train.report_to: {name} is not installed; pip install 'kava[track]' brings"
                " trackio, wandb and tensorboard"
            ) from None


def last_checkpoint(run: Path) -> str:
    """The newest complete checkpoint of a run.

    Raises:
        KavaError: there is none.
    """
    found = _checkpoints(run)
    if not found:
        raise KavaError(
            f"{run}: no complete checkpoint to resume from; start anew with another --output"
        )
    return str(found[-1])


def has_checkpoint(run: Path) -> bool:
    """Whether a run can be resumed."""
    return bool(_checkpoints(run))


def _checkpoints(run: Path) -> list[Path]:
    complete = [f for f in (run / "checkpoints").glob("checkpoint-*") if _complete(f)]
    return sorted(complete, key=lambda folder: int(folder.name.split("-")[1]))


def _complete(folder: Path) -> bool:
    # The Trainer writes its state last, so a folder without it was cut off.
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "kava.json").is_file()


def _cut_after(file: Path, step: int) -> None:
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line cut off by the kill, later than the last checkpoint
        if record["step"] <= step:
            kept.append(line)
    file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
