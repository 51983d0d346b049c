"""The progress bar of a training run: loss terms, validation accuracy and time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers.utils import logging

from kava.system.text import PlainConsole


@contextmanager
def no_bars() -> Iterator[None]:
    """Inside the block, hide transformers' own bars, which would flash up for every small file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Inside the block, hide transformers' warnings, where kava reports the same in one line."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


#: Loss terms that are shown while training, by their keys in `metrics.jsonl`.
_LABELS = {"student_ce": "student CE", "teacher_ce": "teacher CE", "codi": "L_CODI", "kv": "L_KV"}


class Progress:
    """A progress bar on a terminal; without a terminal, a plain line at each validation."""

    def __init__(self, title: str, console: Console | None = None):
        self.console = console or PlainConsole()
        self.title = title
        self._task: Any = None
        self._parts = self._validation = ""
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, done: int, total: int) -> None:
        """Start the bar for a training run of `total` steps, of which `done` are finished."""
        self._task = self._bar.add_task(self.title, total=total, completed=done, state="")

    def step(self, done: int) -> None:
        """Set the number of finished steps."""
        self._bar.update(self._task, completed=done)

    def log(self, record: dict[str, Any]) -> None:
        """Show a record of the metrics."""
        parts = [f"{label} {record[key]:.3f}" for key, label in _LABELS.items() if key in record]
        if parts:
            self._parts = "  ".join(parts)
        if "validation_accuracy" in record:
            accuracy = record["validation_accuracy"]
            self._validation = f"validation {accuracy:.1f} %"
            if not self.console.is_terminal:
                self.console.print(
                    f"{self.title}  step {record['step']}  {self._parts}  {self._validation}"
                )
        if self._task is not None:
            self._bar.update(self._task, state=f"{self._parts}  {self._validation}")
