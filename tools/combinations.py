"""Write docs/reference/combinations.md: what the tests run together.

KAVA_COMBINATIONS=FOLDER make test
python -m tools.combinations FOLDER            # writes the page
python -m tools.combinations FOLDER --check    # the page claims only what was run
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from kava.recipe import registry
from kava.system.tables import Lines, markdown_table

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "docs/reference/combinations.json"
PAGE = ROOT / "docs/reference/combinations.md"
#: The axes that are shown against the methods, and their place in a combination.
TABLES = {"Backbone": 2, "Adapter": 3, "Precision": 4, "Processes": 5}
#: What a cell says, by the kinds of combinations behind it.
CELLS = {
    frozenset({"trained", "answered"}): "yes",
    frozenset({"trained"}): "trained",
    frozenset({"answered"}): "answers",
}
UNTRIED = "-"
_HEAD = """\
<!-- Written by `python -m tools.combinations`. -->
# What combines with what

This page lists what the tests run, on tiny models with random weights; `.ci/run` checks that each
cell was run. `yes`: a training step and an answer came to their end. `trained`, `answers`: only one
of them was run. `-`: not tried by the tests, which does not mean that it fails.
"""
_PAIRS = """\
## More than two together

Each table above shows a method and one other choice. These are the combinations behind them that
were trained with an adapter, in another precision than fp32, or on several processes:
"""
_REFUSED = """\
## Refused

A backbone of these types is refused before its weights are used, with the error of this code
(`kava.KavaError.code`):
"""
_ELSEWHERE = """\
Quantised weights are refused (`backbones.quantised`). Of launchers, DeepSpeed and the first
version of FSDP are refused ([Scale up](../scale.md)). What vLLM can serve is in
[Serve](../serving.md).
"""


def read(folder: Path) -> list[list[str]]:
    """Return the combinations that a test run wrote, sorted."""
    if not (files := sorted(folder.glob("*.jsonl"))):
        sys.exit(f"{folder}: no combinations; run the tests with KAVA_COMBINATIONS={folder}")
    lines = {line for file in files for line in file.read_text(encoding="utf-8").splitlines()}
    return _described(map(json.loads, lines))


def _described(found: Iterable[list[str]]) -> list[list[str]]:
    """Leave out methods of tests, and refusals of types that other tests train."""
    methods = set(registry.names("methods"))
    kept = [one for one in found if one[0] == "refused" or one[1] in methods]
    trained = {one[2] for one in kept if one[0] == "trained"}
    return sorted(one for one in kept if one[0] != "refused" or one[2] not in trained)


def page(combinations: list[list[str]]) -> str:
    """Return the page as Markdown."""
    run = [one for one in combinations if one[0] != "refused"]
    methods = sorted({one[1] for one in run})
    parts = [_HEAD]
    for title, axis in TABLES.items():
        kinds: dict[tuple[str, str], set[str]] = defaultdict(set)
        for one in run:
            kinds[one[axis], one[1]].add(one[0])
        rows = [
            (f"`{value}`", *(_cell(kinds.get((value, method))) for method in methods))
            for value in sorted({one[axis] for one in run})
        ]
        parts.append(f"## {title}\n\n{_table((title, *_named(methods)), rows)}\n")
    parts.append(_PAIRS + "\n" + _together(run) + "\n")
    refused = defaultdict(list)
    for _, code, family in (one for one in combinations if one[0] == "refused"):
        refused[code].append(f"`{family}`")
    rows = [(f"`{code}`", ", ".join(types)) for code, types in sorted(refused.items())]
    parts.append(f"{_REFUSED}\n{_table(('code', 'types'), rows)}\n\n{_ELSEWHERE}")
    return "\n".join(parts)


def _named(methods: list[str]) -> list[str]:
    return [f"`{method}`" for method in methods]


def _cell(kinds: set[str] | None) -> str:
    return CELLS[frozenset(kinds)] if kinds else UNTRIED


def _together(run: list[list[str]]) -> str:
    """Return a table of the backbones, adapters, precisions and processes that were trained."""
    groups: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for kind, method, *rest in run:
        if kind == "trained" and sum(a != b for a, b in zip(rest[1:], _PLAIN, strict=True)) > 0:
            groups[tuple(rest)].add(method)
    rows = [(*rest, ", ".join(_named(sorted(names)))) for rest, names in sorted(groups.items())]
    return _table(("backbone", "adapter", "precision", "processes", "methods"), rows)


def _table(headings: Sequence[str], rows: Lines) -> str:
    return markdown_table(headings, rows, range(len(headings)))


_PLAIN = ("full", "fp32", "1")


def main() -> None:
    """Write the page, or check it against a test run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where a test run wrote its combinations")
    parser.add_argument("--check", action="store_true", help="only check what is committed")
    given = parser.parse_args()
    found = read(given.folder)
    if given.check:
        claimed = json.loads(STORED.read_text(encoding="utf-8"))
        if missing := [one for one in claimed if one not in found]:
            told = "\n".join(map(" ".join, missing))
            sys.exit(f"{STORED.name} names {len(missing)} combinations that were not run:\n{told}")
        print(f"{len(claimed)} combinations of {STORED.name} were run")
        return
    lines = ",\n".join(json.dumps(one) for one in found)
    STORED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"{len(found)} combinations written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
