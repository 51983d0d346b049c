"""SVAMP: 1,000 short problems, variations of existing ones (Patel et al., arXiv:2103.07191).

The task consists of the train split (700) and the test split (300), as in the evaluations of KaVa
and CODI. Neither split is trained on.
"""

from typing import Any

from kava.data.tasks._rows import Source

VERSION = 1


def _join_question(row: dict[str, Any]) -> dict[str, Any]:
    """Join `Body` and `Question` to one question, and make an id of `ID` (`chal-17`)."""
    if not isinstance(row.get("Body"), str) or not isinstance(row.get("Question"), str):
        return row
    row = {**row, "question": f"{row['Body'].strip()} {row['Question'].strip()}"}
    return {**row, "id": f"svamp-{row['ID']}"} if row.get("ID") else row


SOURCE = Source("SVAMP", "svamp", 1_000, "ChilleD/SVAMP", ("train", "test"), by_program=True)
load = SOURCE.loader("svamp", VERSION, _join_question)
