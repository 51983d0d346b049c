"""The log of a training, `metrics.jsonl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kava.errors import KavaError


def is_number(value: Any) -> bool:
    """Whether a logged value is a number that fits where numbers go."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float)


def is_finite(value: Any) -> bool:
    """Whether it can be drawn: a loss that ran away is logged as NaN or infinity."""
    return is_number(value) and abs(value) <= sys.float_info.max


def read_records(file: Path) -> list[dict[str, Any]]:
    """Every whole line of a log; the last one may be half written at this moment, or cut off.

    Raises:
        KavaError: a line that no training writes, by its number.
    """
    records = []
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):  # no UTF-8 is a ValueError too
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
                f"{file}, line {number}: no object with a number as its 'step'; not a log of kava",
                code="runs.no-step",
                key=str(file),
            )
        records.append(record)
    return records
