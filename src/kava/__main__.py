"""`python -m kava` and `kava`: run a command; bad input is one line and status 2."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kava import parallel
    from kava.cli import app
    from kava.errors import KavaError, out_of_memory
    from kava.preemption import Preempted

    command = parallel.command_of(sys.argv[1:])
    if parallel.processes() > 1:
        # torch tells each process that DDP looked for unused weights and there were none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        parallel.check_command(sys.argv[1:])
        app(prog_name="kava")
    except SystemExit as end:
        if not end.code:
            parallel.leave()
            parallel.end(0)
        elif end.code == 128 + signal.SIGINT and (hint := _hint(command)):
            parallel.tell(f"kava: interrupted; {hint}")
            parallel.end(end.code)
        raise
    except KavaError as error:
        parallel.tell(f"kava: {error}")
        parallel.end(2)
    except OSError as error:
        if error.filename is None:  # no file of the user's: a fault of ours, shown whole
            raise
        parallel.tell(f"kava: {error.filename}: {error.strerror}")
        parallel.end(2)
    except RuntimeError as error:
        if line := out_of_memory(error):
            parallel.tell(f"kava: {line}")
            parallel.end(2)
        if not parallel.lost(error):
            raise
        parallel.tell(
            f"kava: another of the {parallel.processes()} processes is gone, so this one stops; "
            "where checkpoints were saved, `--resume` goes on from the last"
        )
        parallel.end(2)
    except Preempted:
        again = "the same line again" if command == "sweep" else "`--resume`"
        parallel.tell(f"kava: asked to stop, and has saved; {again} goes on from here")
        parallel.end(128 + signal.SIGTERM)


def _hint(command: str | None) -> str:
    """How an interrupted command goes on; empty where it only begins again."""
    if command in ("train", "pretrain"):
        return "where checkpoints were saved, `--resume` goes on from the last"
    return "the same line again goes on from here" if command == "sweep" else ""


if __name__ == "__main__":
    main()
