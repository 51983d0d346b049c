"""The commands of kava.

Each command imports what it needs when it runs, so that `kava --help` is fast. Each module in this
folder has the commands of one kind; importing it adds them to `app`.
"""

from kava.cli._app import app

# isort: off
from kava.cli import training, scoring, looking, serving, measuring  # in the order of `kava --help`

__all__ = ["app", "looking", "measuring", "scoring", "serving", "training"]
