"""What happens beside a training's steps: the log, the progress bar, a stop that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kava import preemption
from kava.errors import writing
from kava.progress import Progress

METRICS = "metrics.jsonl"
#: What to do where writing failed.
GO_ON = "free some space, and --resume goes on from the last checkpoint"


class Record(TrainerCallback):
    """Writes `metrics.jsonl` and feeds the progress bar, on the main process."""

    def __init__(self, file: Path, progress: Progress):
        self.file, self.progress = file, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what an interrupted run logged after its last checkpoint."""
        if state.is_world_process_zero:
            _cut_after(self.file, state.global_step)
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more step on the bar."""
        self.progress.step(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """One line a log."""
        record = {"step": state.global_step, **logs}
        if "train_runtime" not in logs and state.is_world_process_zero:
            with writing(self.file, GO_ON), self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
        self.progress.log(record)


class StopWhenAsked(TrainerCallback):
    """Ends a training at a step's boundary, with a checkpoint, once a stop was asked for.

    The steps since the last log are logged first, so that none is missing in what is resumed.
    Several processes end after the same step.
    """

    def __init__(self) -> None:
        self._stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asked for during the step."""
        if preemption.is_asked():
            control.should_log = True
            self._stop(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asked for during the validation that followed it."""
        if preemption.is_asked():
            self._stop(control)

    def check(self) -> None:
        """After the training: one that was ended so goes no further.

        What is asked for after the last step's boundary waits until the trained weights are saved.

        Raises:
            Preempted: it was.
        """
        if self._stopped:
            raise preemption.Preempted

    def _stop(self, control: Any) -> None:
        control.should_save = control.should_training_stop = self._stopped = True


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
