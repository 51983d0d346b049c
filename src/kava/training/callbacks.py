"""Trainer callbacks: write the log, show progress, and stop when a signal asks for it."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kava.runs.metrics import read_records
from kava.system import distributed, links, signals
from kava.system.files import explain_disk_errors, write_whole
from kava.system.progress import Progress

#: Advice in the error message if a file cannot be written.
GO_ON = "free some disk space, then continue from the last checkpoint with --resume"


class Record(TrainerCallback):
    """Writes `metrics.jsonl` and updates the progress bar, on the main process."""

    def __init__(self, file: Path, progress: Progress):
        self.file, self.progress = file, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove what an interrupted run logged after its last checkpoint.

        Raises:
            KavaError: if its log is damaged; on all processes.
        """
        distributed.on_main_rank(lambda: _truncate_log(self.file, state.global_step))
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the progress bar; the last step is logged whatever `train.log_every` is."""
        self.progress.step(state.global_step)
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append one line to the log."""
        logs = kwargs["logs"]
        record = {"step": state.global_step, **logs}
        if "train_runtime" not in logs and state.is_world_process_zero:
            with explain_disk_errors(self.file, GO_ON):
                links.append(self.file, json.dumps(record) + "\n")
        self.progress.log(record)


class StopOnSignal(TrainerCallback):
    """Ends training at a step boundary, with a checkpoint, after a stop was requested.

    The steps since the last log are logged first, so that a resumed run misses none. With several
    processes, all end after the same step.
    """

    def __init__(self) -> None:
        self._stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if it was requested during the step."""
        if signals.stop_requested():
            control.should_log = True
            self._stop(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if it was requested during the validation after the step."""
        if signals.stop_requested():
            self._stop(control)

    def check(self) -> None:
        """Raise `Preempted` after training, if training was ended early.

        A request that arrives after the last step boundary waits until the trained weights are
        saved.

        Raises:
            Preempted: if training was ended early.
        """
        if self._stopped:
            raise signals.Preempted

    def _stop(self, control: Any) -> None:
        control.should_save = control.should_training_stop = self._stopped = True


def _truncate_log(file: Path, step: int) -> None:
    if file.exists():
        kept = (record for record in read_records(file) if record["step"] <= step)
        write_whole(file, "".join(json.dumps(record) + "\n" for record in kept))
