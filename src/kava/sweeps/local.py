"""Run a sweep on this machine, one run after the other."""

import gc
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import Console

from kava.sweeps.attempt import Outcome, Run, Scoring, attempt
from kava.system.environment import default_device
from kava.system.text import print_text


def run_all(runs: Sequence[Run], scoring: Scoring, console: Console) -> list[Outcome]:
    """Do each run that is neither done nor locked; a failure does not stop the others.

    Raises:
        KavaError: there is an NVIDIA GPU that torch cannot use, and the CPU was not requested.
    """
    default_device()
    outcomes = []
    for number, run in enumerate(runs, 1):
        say = partial(print_text, console, f"[{number}/{len(runs)}] {run.folder}")
        outcomes.append(attempt(run, scoring, say, console))
        _free_memory()
    return outcomes


def _free_memory() -> None:
    """Collect garbage, because a failed run's traceback keeps its tensors alive until then."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
