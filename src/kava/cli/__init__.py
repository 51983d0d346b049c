"""The commands. Each imports what it needs when it runs, so that `kava --help` is quick.

A module here holds the commands of one kind; importing it adds them to `app`.
"""

from __future__ import annotations

from kava.cli._app import app

# isort: off
from kava.cli import training, scoring, looking, serving, measuring  # in the order of `kava --help`

__all__ = ["app", "looking", "measuring", "scoring", "serving", "training"]
