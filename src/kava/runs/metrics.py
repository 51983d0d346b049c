"""Read the log of a training run, `metrics.jsonl`."""

import json
import sys
from pathlib import Path
from typing import Any

from kava.errors import KavaError


def is_number(value: Any) -> bool:
    """Whether a logged value is a number that can be stored as a number."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float)


def is_finite(value: Any) -> bool:
    """Whether a logged value can be plotted: a diverging loss is logged as NaN or infinity."""
    return is_number(value) and abs(value) <= sys.float_info.max


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read all complete lines of a log; the last line may be partly written, or cut off.

    Raises:
        KavaError: for a line that no training run writes; names the line number.
    """
    records = []
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):  # invalid UTF-8 is a ValueError too
            if number == len(lines):
                break
            raise KavaError(
                f"{file}, line {number}: broken JSON; not a log of kava",
                code="runs.not-a-log",
                key=str(file),
            ) from None
        step = record.get("step") if isinstance(record, dict) else None
        if not (is_number(step) and isinstance(step, int) and step >= 0):
            raise KavaError(
                f"{file}, line {number}: expected an object with a number as its 'step'; not a "
                "log of kava",
                code="runs.no-step",
                key=str(file),
            )
        records.append(record)
    return records
