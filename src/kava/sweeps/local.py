"""Runs on this machine, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import Console

from kava.sweeps.attempt import Outcome, Run, Scoring, attempt
from kava.system.text import print_text


def run_all(runs: Sequence[Run], scoring: Scoring, console: Console) -> list[Outcome]:
    """Each run that is not done and in nobody's hands; a failure does not stop the rest."""
    outcomes = []
    for number, run in enumerate(runs, 1):
        say = partial(print_text, console, f"[{number}/{len(runs)}] {run.folder}")
        outcomes.append(attempt(run, scoring, say, console))
        _free_memory()
    return outcomes


def _free_memory() -> None:
    """A failed run's tensors hang on its traceback until they are collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
