"""The harness's command line with kava's model and tasks (`python -m kava.lm_eval`)."""

import sys

from kava.errors import KavaError
from kava.system.text import printable


def main() -> None:
    """Run `lm_eval`; invalid input to kava is reported in one line, with exit status 2."""
    from kava.lm_eval import TASKS, require

    try:
        require()
        from lm_eval.__main__ import cli_evaluate

        import kava.lm_eval.model  # noqa: F401  the import registers the model

        if len(sys.argv) > 1 and "--include_path" not in " ".join(sys.argv):
            sys.argv += ["--include_path", str(TASKS)]
        cli_evaluate()
    except KavaError as error:
        print(printable(f"kava: {error}"), file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
