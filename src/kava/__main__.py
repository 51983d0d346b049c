"""`python -m kava` and `kava`: run a command; bad input is one line and status 2."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kava.cli import app
    from kava.errors import KavaError

    try:
        app(prog_name="kava")
    except KavaError as error:
        print(f"kava: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:  # no file of the user's: a fault of ours, shown whole
            raise
        print(f"kava: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "kava: interrupted; where checkpoints were saved, `--resume` goes on from the last",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
