"""The process in which math-verify runs: `python -m kava.evaluation._symbolic_worker`.

A line `[text, gold]` in, a line `true` or `false` out; the first line out says that it is ready.
One question may take `CPU_SECONDS` of processor time; then the operating system ends the process.
A handler in Python would not do: sympy swallows what it raises, and is not interrupted inside one
long multiplication.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys

CPU_SECONDS = 1.0  # of processor time, so a busy machine decides nothing
MEMORY = 4 << 30  # bytes of address space


def agrees(text: str, gold: str) -> bool:
    """Whether math-verify finds `gold` in `text`; not if it fails at either."""
    import sympy.core.random
    from math_verify import parse, verify

    sympy.core.random.seed(0)  # simplification tries random points
    try:
        parsed = parse(text, parsing_timeout=None)
        return bool(verify(parse(gold, parsing_timeout=None), parsed, timeout_seconds=None))
    except (Exception, RecursionError, MemoryError):
        return False


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what a library might print
    logging.disable()  # without a time-out of its own, math-verify warns that it has none
    with contextlib.suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    agrees("$1$", "1")  # imports, and builds its grammar and patterns
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        text, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # nobody handles SIGPROF: it ends us
        right = agrees(text, gold)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(right), file=answers, flush=True)


if __name__ == "__main__":
    main()
