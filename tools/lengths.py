"""Count the lengths of GSM8k-Aug's examples: `python -m tools.lengths ROWS TOKENIZER`.

Writes `src/kava/sweeps/gsm8k_lengths.json`: how many examples have how many tokens in their
question and in their chain of thought. No example can be recovered from these numbers.

    ROWS       JSONL with `question` and `cot`
    TOKENIZER  a `tokenizer.json`; the committed counts are those of SmolLM2
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from kava.sweeps.lengths import BIN, COUNTS, NAME
from kava.system.files import write_whole


def counts(rows: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """Return [question, reasoning, examples]; lengths are rounded up to multiples of `BIN`.

    Questions include BOS. The answer is not counted: it has a few tokens.
    """
    found: Counter[tuple[int, int]] = Counter()
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = 1 + len(tokenizer.encode(row["question"]).ids)
        reasoning = sum(len(tokenizer.encode(step).ids) for step in row["cot"])
        found[_up(question), _up(reasoning)] += 1
    return [[*lengths, number] for lengths, number in sorted(found.items())]


def _up(tokens: int) -> int:
    return -(-tokens // BIN) * BIN


if __name__ == "__main__":
    told = counts(Path(sys.argv[1]), Tokenizer.from_file(sys.argv[2]))
    lines = ",\n".join(json.dumps(one) for one in told)
    write_whole(COUNTS, f'{{"{NAME}": [\n{lines}\n]}}\n')
