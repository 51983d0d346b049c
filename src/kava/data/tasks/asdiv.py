"""ASDiv: 2,305 problems of primary schools (Miao et al., ACL 2020, arXiv:2106.15772).

The rule `numeric` reads the answers, of which the unit is left out (`9 (apples)` becomes `9`); for
the few that are words or a ratio, `kava eval` names the rule.
"""

from typing import Any

from kava.data.tasks._rows import Source

VERSION = 1


def _read(row: dict[str, Any]) -> dict[str, Any]:
    """Join `body` and `question` to one question, and remove the unit from the answer."""
    changed = dict(row)
    if isinstance(row.get("body"), str) and isinstance(row.get("question"), str):
        changed["question"] = f"{row['body'].strip()} {row['question'].strip()}"
    if isinstance(row.get("answer"), str) and row["answer"].endswith(")"):
        changed["answer"] = row["answer"].partition(" (")[0]
    return changed


# The Hub has a single split, which is called validation.
SOURCE = Source("ASDiv", "asdiv", 2_305, "EleutherAI/asdiv", ("validation",))
load = SOURCE.loader("asdiv", VERSION, _read)
