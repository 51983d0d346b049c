"""The training loop: a transformers Trainer with one call of the reasoner per micro-batch."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, TrainerState

from kava.backbones import layerwise, loading
from kava.backbones.device import describe
from kava.errors import KavaError, on_one_line, out_of_memory
from kava.evaluation.answers import HEADLINE, note_on_unreadable_golds
from kava.evaluation.runner import evaluate
from kava.reasoning import checkpoint
from kava.reasoning.batching import Row
from kava.reasoning.reasoner import Reasoner
from kava.runs.layout import METRICS
from kava.runs.resume import last_checkpoint, write_checksums
from kava.system import distributed, sharded, signals
from kava.system.files import explain_disk_errors
from kava.system.progress import Progress
from kava.training.arguments import arguments, check_lengths, check_schedule, check_steps
from kava.training.attention import check_attention
from kava.training.callbacks import GO_ON, Record, StopOnSignal
from kava.training.fit import fit_or_keep
from kava.training.sampler import EncodedRows, EpochOrder, collate
from kava.types import Example


class StepTrainer(Trainer):
    """Trainer that normalizes losses over the whole batch, and logs each term of the loss.

    Each micro-batch has the denominators of all micro-batches of its step, on all processes, so
    that gradient accumulation equals one large batch. The exceptions are the standard deviations in
    L_CODI and L_KV, which are those of a micro-batch. The examples, random numbers and denominators
    of a micro-batch depend only on its place in the training, not on the process that computes it.
    If `train.micro_batch_size` is given, any number of processes therefore computes what one would,
    up to rounding: close in fp32 on a CPU, less so in bf16 on GPUs.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        sharded.keep_precision(getattr(self.accelerator.state, "fsdp_plugin", None))
        # With a `compute_loss_func`, transformers assumes that the loss is normalized over the
        # whole step, and does not divide it by the number of micro-batches. Version 5.17 has no
        # other switch for that.
        self.compute_loss_func = self.compute_loss
        self._restart_window()
        self._micro_batches: list[MicroBatch] = []
        self.validation_accuracy: float | None = None
        self.validated_at: int | None = None  # the last step that was validated
        self.seconds_in_validation = 0.0

    @property
    def reasoner(self) -> Reasoner:
        """What is trained; `model` of the Trainer may be any module."""
        return cast(Reasoner, self.model)

    @property
    def rows(self) -> Sequence[Row]:
        """The encoded training examples."""
        return cast(EncodedRows, self.train_dataset).rows

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        together = self.args.per_device_train_batch_size * self.args.world_size
        rows, settings = self.rows, self.reasoner.recipe.train
        lengths = [row.columns for row in rows] if settings.group_by_length else None
        size = len(rows), self.args.seed, together
        self.order = EpochOrder(*size, lengths, settings.batch_size)
        return self.order

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Return the micro-batches of a step, in its stage, with the denominators of the step."""
        # accelerate does not set the epoch on resuming with several processes.
        self.order.set_epoch(int(self.epoch_of(self.state.global_step)))
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._enter_stage()
            batches = [self._apply_stage(batch, i) for i, batch in enumerate(batches)]
            count_in = self.reasoner.method.counts
            parts = [
                {name: count * batch["weight"] for name, count in count_in(batch).items()}
                for batch in batches
            ]
            sums = {name: cast(Tensor, sum(part[name] for part in parts)) for name in parts[0]}
            counts = {name: count.to(device, non_blocking=True) for name, count in sums.items()}
            counts = self.accelerator.reduce(counts, "sum")
            for i, batch in enumerate(batches):
                batch |= {"counts": counts, "draw": self._first_row(i)}
        self._micro_batches = []
        return batches, None

    def epoch_of(self, step: int) -> float:
        """Return how many epochs precede an optimizer step."""
        return step / self.reasoner.recipe.train.steps_per_epoch(len(self.rows))

    def _enter_stage(self) -> None:
        # Depends on the step only, so that a resumed run equals an uninterrupted one.
        method, step = self.reasoner.method, self.state.global_step
        stage = method.stage(self.epoch_of(step))
        if stage is None or step == 0 or stage == method.stage(self.epoch_of(step - 1)):
            return
        # The moments of AdamW alone: the learning rate continues on its schedule.
        if method.options.reset_optimizer:
            cast(Optimizer, self.optimizer).state.clear()

    def _apply_stage(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        return self.reasoner.apply_stage(
            batch, self.epoch_of(self.state.global_step), self._first_row(index)
        )

    def _first_row(self, index: int) -> int:
        """Return the position in the training of the first example of micro-batch `index`."""
        place = index * self.accelerator.num_processes + self.accelerator.process_index
        step = self.state.global_step * self.reasoner.recipe.train.batch_size
        return step + place * self.args.per_device_train_batch_size

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss of one micro-batch, and keep its terms for the log, on the device."""
        weight, draw, ids = (inputs.pop(name) for name in ("weight", "draw", "ids"))
        # The third number separates dropout from the random numbers of the curriculum.
        torch.manual_seed(hash((self.args.seed, draw, 1)))
        # For FSDP2, accelerate relies on half-precision weights and sets no autocast.
        with (
            distributed.shared_micro_batch(self._shares_micro_batch, weight),
            self.accelerator.autocast(),
        ):
            terms = model(**inputs)
        # A stand-in must not count, but its backward pass takes part in the collective operations.
        if not weight:
            terms = {name: 0 * value for name, value in terms.items()}
        self._micro_batches.append(
            MicroBatch(ids, {name: value.detach() for name, value in terms.items()})
        )
        if not self._terms:
            self._first_step = self.state.global_step
        for name, value in terms.items():
            if name != "loss":
                self._terms[name] = self._terms.get(name, 0) + value.detach()
        parts = ("question_mask", "steps_mask", "answer_mask")
        self._tokens = self._tokens + weight * sum(inputs[part].sum() for part in parts)
        # Gradients are averaged over processes, but the denominators already count all of them.
        loss = terms["loss"] * self.accelerator.num_processes
        return (loss, terms) if return_outputs else loss

    @property
    def _shares_micro_batch(self) -> bool:
        """Whether the processes share one micro-batch, because the recipe's is the whole batch."""
        settings, processes = self.reasoner.recipe.train, self.accelerator.num_processes
        whole = self.args.per_device_train_batch_size * processes == settings.batch_size
        return processes > 1 and not settings.micro_batch_size and whole

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        norm = sharded.unshard(super()._clip_grad_norm(model))
        self._check_finite(norm)
        return norm

    def _check_finite(self, norm: Tensor) -> None:
        """Stop before an optimizer step that would make the weights non-finite.

        Raises:
            KavaError: on all processes; names the step, the term and the examples.
        """
        values = [value.float() for one in self._micro_batches for value in one.terms.values()]
        broken = ~torch.isfinite(torch.stack([*values, norm.detach().float()])).all()
        if not self.accelerator.reduce(broken.float(), "sum"):
            return
        here = [(one.ids, one.non_finite_terms) for one in self._micro_batches]
        everywhere = [one for part in distributed.gather(here) for one in part]
        raise KavaError(
            _not_finite(self.state.global_step + 1, everywhere), code="training.not-finite"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last log, and the throughput."""
        if "loss" in logs:
            steps = self.state.global_step - self._first_step
            names = sorted(self._terms)
            if names and steps:
                total = torch.stack([self._terms[name].float() for name in names])
                total = cast(Tensor, self.accelerator.reduce(total, "sum")) / steps
                logs.update(zip(names, total.tolist(), strict=True))
            tokens = torch.as_tensor(self._tokens, dtype=torch.float64, device=self.args.device)
            tokens = float(cast(Tensor, self.accelerator.reduce(tokens, "sum")))
            seconds = time.perf_counter() - self._since
            stage = self.reasoner.method.stage(self.epoch_of(self.state.global_step - 1))
            if stage is not None:
                logs["stage"] = stage
            logs["tokens_per_second"] = round(tokens / seconds, 1)
            if steps:
                logs["seconds_per_step"] = round(seconds / steps, 4)
            self._restart_window()
        # The Trainer's epoch counts micro-batches with blanks, so it depends on the processes.
        self.state.epoch = self.epoch_of(self.state.global_step)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute the accuracy on the validation examples by greedy generation, not a loss."""
        begin = time.perf_counter()
        settings = self.reasoner.recipe.eval
        with sharded.full_weights(self.reasoner):
            result = evaluate(
                self.reasoner,
                cast(Sequence[Example], self.eval_dataset),
                settings.batch_size,
                settings.max_new_tokens,
                rules=(HEADLINE,),
            )
        self.validation_accuracy = result.summary["accuracy"]
        self.validated_at = self.state.global_step
        metrics = {"validation_accuracy": self.validation_accuracy, "validation_n": result.n}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        seconds = time.perf_counter() - begin
        self.seconds_in_validation += seconds
        self._since += seconds
        return metrics

    def restore_finished(self, folder: str) -> bool:
        """Restore a run whose last step was already checkpointed; False for an earlier step.

        The Trainer itself trains one step too many if such a checkpoint lies within an epoch.
        """
        state = _state(folder)
        if state.global_step < state.max_steps:
            return False
        self.state = state
        self._load_from_checkpoint(folder)
        for record in state.log_history:
            if record["step"] == state.global_step and "validation_accuracy" in record:
                self.validation_accuracy = record["validation_accuracy"]
                self.validated_at = state.global_step
        return True

    def _restart_window(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._tokens: Tensor | int = 0
        self._since, self._first_step = time.perf_counter(), 0

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint, whose files do not depend on the number of processes.

        Raises:
            KavaError: on all processes, if it cannot be written. Earlier checkpoints are kept.
        """
        self._weights = sharded.gather_weights(self.reasoner)  # collective calls, none below
        self._optimizer_state = sharded.gather_optimizer(cast(Optimizer, self.optimizer))
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        save = partial(super()._save_checkpoint, model, trial)

        def write() -> None:
            if self.args.should_save:
                checkpoint.check_finite(self.reasoner, self._weights, folder)
            with explain_disk_errors(folder, GO_ON):
                save()
                if self.args.should_save:
                    write_checksums(folder)

        try:
            distributed.raise_on_all_ranks(write)
        except KavaError:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._weights = self._optimizer_state = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the checkpoint's own files, on the main process."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write(self.reasoner, folder, self._weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            torch.save(self._optimizer_state, Path(output_dir) / "optimizer.pt")
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / "scheduler.pt")

    def _save_rng_state(self, output_dir: str) -> None:
        """Do nothing: each micro-batch sets its own random seed."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing; see `_save_rng_state`."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: `train` loads the weights before they are sharded over processes."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        optimizer = cast(Optimizer, self.optimizer)
        fill = {
            "optimizer.pt": lambda state: optimizer.load_state_dict(
                sharded.shard_optimizer(optimizer, state)
            ),
            "scheduler.pt": cast(Any, self.lr_scheduler).load_state_dict,
        }
        for name, take in fill.items():
            file = Path(checkpoint) / name
            try:
                take(torch.load(file, map_location="cpu", weights_only=True))
            except _UNFIT as error:
                if out_of_memory(error):
                    raise
                line = on_one_line(error)
                raise KavaError(
                    f"{file}: does not match this training run: {type(error).__name__}: {line}",
                    code="training.other-checkpoint",
                    key=str(file),
                ) from None


#: Errors that torch raises for a file of another kind, or for the state of another training run.
_UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, UnpicklingError)


@dataclass(frozen=True)
class MicroBatch:
    """The ids and scalar loss terms of a micro-batch, kept until the optimizer step."""

    ids: list[str]
    terms: dict[str, Tensor]

    @property
    def non_finite_terms(self) -> list[str]:
        """Return the terms that are not finite; `loss` only if no other term is."""
        found = [name for name, value in self.terms.items() if not torch.isfinite(value)]
        return [name for name in found if name != "loss"] or found


def _not_finite(step: int, micro_batches: Sequence[tuple[list[str], list[str]]]) -> str:
    """Return the error message for a loss that is not finite.

    `micro_batches` has the ids and the non-finite terms of each micro-batch.
    """
    bad = [(ids, terms) for ids, terms in micro_batches if terms]
    names = list(dict.fromkeys(name for _, terms in bad for name in terms))
    ids = [id for rows, _ in bad or micro_batches for id in rows]
    row_ids = ", ".join(ids[:_MOST_IDS]) + (
        f" and {len(ids) - _MOST_IDS} more" * (len(ids) > _MOST_IDS)
    )
    return (
        f"step {step}: {', '.join(names) or 'the gradient'} is not finite, in the batch of rows "
        f"{row_ids}; this step was not applied and earlier checkpoints are kept; try a lower "
        "train.learning_rate, or check these rows"
    )


_MOST_IDS = 64


def _state(checkpoint: str) -> TrainerState:
    return TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))


def train(
    reasoner: Reasoner,
    examples: Sequence[Example],
    validation: Sequence[Example],
    run: Path,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Train a reasoner by its recipe; checkpoints and metrics are written to `run`.

    Returns:
        what was measured: `steps`, `train_seconds` (without validation), `rows` (without those
        that `data.too_long` left out, which are counted in `rows_too_long`), `rows_at_once` of
        each process,
        `validation_accuracy` (percent) and its `validation_n`; for a resumed run also
        `resumed_from`, the step after which `train_seconds` begins.

    Raises:
        KavaError: if there is nothing to train on, an example is too long, a loss is not finite, or
            there is no intact checkpoint to resume from.
        Preempted: if a stop was requested (`kava.system.signals`); the work so far is saved.
    """
    if not examples:
        raise KavaError("data.train: no rows", code="data.no-rows", key="data.train")
    recipe = reasoner.recipe
    rows = reasoner.encoder.rows(examples)
    check_schedule(reasoner, max(len(row.steps) for row in rows), len(rows))
    reasoner.method.check_rows(rows)
    check_steps(reasoner, examples, rows, progress.console)
    every, rows = len(rows), check_lengths(reasoner, rows, progress.console)
    if note := note_on_unreadable_golds(example.answer for example in validation):
        progress.console.print(f"data.validation: {note}", highlight=False, markup=False)
    reasoner.prepare_training()
    loading.allow_tf32(recipe, reasoner.device)
    start = distributed.from_main_rank(lambda: last_checkpoint(run)) if resume else None
    rows_each, fit = fit_or_keep(reasoner, rows, _state(start).train_batch_size if start else None)
    check_attention(reasoner, rows, rows_each)
    half = recipe.train.autocasts(reasoner.device.type)
    progress.console.print(describe(reasoner.lm, half, rows_each), highlight=False, markup=False)
    if fit:
        line = fit.describe(recipe.train.batch_size)
        progress.console.print(line, highlight=False, markup=False)
    for model in (reasoner.lm, *reasoner.training_modules.values()):
        if isinstance(model, PreTrainedModel):
            layerwise.enable(model, recipe.train.gradient_checkpointing, recipe.train.compile)
    if start:
        checkpoint.load_weights(reasoner, start)
    stop = StopOnSignal()
    trainer = StepTrainer(
        model=reasoner,
        args=arguments(recipe, run, reasoner.device, bool(validation), rows_each),
        train_dataset=EncodedRows(rows),
        eval_dataset=list(validation),
        data_collator=partial(collate, pad_id=reasoner.tokenizer.pad_token_id, stand_in=rows[0]),
        callbacks=[Record(run / METRICS, progress), stop],
    )
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run / "tensorboard")
    begin = time.perf_counter()
    with progress:
        if start and trainer.restore_finished(start):
            signals.check()
        else:
            trainer.train(resume_from_checkpoint=start)
            stop.check()
        # Some versions of transformers validate after the last step.
        if validation and trainer.validated_at != trainer.state.global_step:
            trainer.evaluate()
    seconds = time.perf_counter() - begin - trainer.seconds_in_validation
    reasoner.training_modules.clear()
    reasoner.eval()
    resumed = {"resumed_from": int(start.rpartition("-")[2])} if start else {}
    return {
        **resumed,
        "steps": trainer.state.global_step,
        "rows": len(rows),
        "rows_at_once": rows_each,
        **({"rows_too_long": every - len(rows)} if every > len(rows) else {}),
        "train_seconds": round(seconds, 2),
        "validation_accuracy": trainer.validation_accuracy,
        "validation_n": len(validation),
    }
