"""The process in which math-verify runs: `python -m kava.evaluation._symbolic_worker`.

It reads a line `[text, gold]` and writes a line `true` or `false`; its first line says that it is
ready. One question may take `CPU_SECONDS` of processor time; then the operating system ends the
process. A signal handler in Python would not work: sympy swallows what the handler raises, and
cannot be interrupted inside one long multiplication.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys

CPU_SECONDS = 1.0  # processor time, so that the load of the machine has no effect
MEMORY = 4 << 30  # bytes of address space


def is_equivalent(text: str, gold: str) -> bool:
    """Whether math-verify finds `gold` in `text`; False if it fails to read either."""
    import sympy.core.random
    from math_verify import parse, verify

    sympy.core.random.seed(0)  # simplification tries random points
    try:
        parsed = parse(text, parsing_timeout=None)
        return bool(verify(parse(gold, parsing_timeout=None), parsed, timeout_seconds=None))
    except (Exception, RecursionError, MemoryError):
        return False


def main() -> None:
    """Answer questions until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards what a library prints
    logging.disable()  # with its own time-out off, math-verify warns
    with contextlib.suppress(ValueError, OSError):  # not supported on every system
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    is_equivalent("$1$", "1")  # imports it, and builds its grammar and patterns
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        text, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # unhandled, SIGPROF ends the process
        right = is_equivalent(text, gold)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(right), file=answers, flush=True)


if __name__ == "__main__":
    main()
