"""The entry point of `kava` and `python -m kava`.

Invalid input is reported in one line, with exit status 2.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kava.errors import KavaError


#: How an interrupted command continues.
RESUME = "if checkpoints were saved, continue from the last one with --resume"
RUN_AGAIN = "run the same command again to continue"


def main() -> None:
    """Run the command line, and turn errors into messages and exit statuses."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Each batch has another shape; segments of fixed size would leave gaps in a GPU's memory.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same variable
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    from kava.cli import app
    from kava.errors import KavaError, out_of_memory
    from kava.system import distributed
    from kava.system.signals import Preempted

    command = distributed.command_of(sys.argv[1:])
    if distributed.world_size() > 1:
        # Otherwise, torch warns in each process that DDP found no unused parameters.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        distributed.check_command(sys.argv[1:])
        app(prog_name="kava")
    except SystemExit as end:
        if not end.code:
            distributed.leave_process_group()
            distributed.exit_process(0)
        elif end.code == 128 + signal.SIGINT and (hint := _hint(command)):
            distributed.print_error(f"kava: interrupted; {hint}")
            distributed.exit_process(end.code)
        raise
    except KavaError as error:
        report(error)
        distributed.exit_process(2)
    except OSError as error:
        if error.filename is None:  # not about a file of the user: a bug, shown with its traceback
            raise
        distributed.print_error(f"kava: {error.filename}: {error.strerror}")
        distributed.exit_process(2)
    except RuntimeError as error:
        if line := out_of_memory(error):
            distributed.print_error(f"kava: {line}")
            distributed.exit_process(2)
        if not distributed.is_peer_failure(error):
            raise
        distributed.print_error(
            f"kava: another of the {distributed.world_size()} ranks has failed, so this one stops; "
            f"{RESUME}"
        )
        distributed.exit_process(2)
    except Preempted:
        how = RUN_AGAIN if command == "sweep" else "continue with --resume"
        distributed.print_error(f"kava: received SIGTERM; checkpoint saved; {how}")
        distributed.exit_process(128 + signal.SIGTERM)


def report(error: KavaError) -> None:
    """Print an error for the user, once for all processes."""
    from kava.system import distributed

    distributed.print_error(f"kava: {error}")


def _hint(command: str | None) -> str:
    """Return how to continue an interrupted command; empty if it can only start again."""
    if command in ("train", "pretrain"):
        return RESUME
    return RUN_AGAIN if command == "sweep" else ""


if __name__ == "__main__":
    main()
