"""Rooms, their order and the page that describes them are one and the same."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "kava"
PAGE = ROOT / "docs" / "architecture.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="part of a checkout only")


def layers() -> list[list[str]]:
    """The contract's layers from top to bottom."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts = tools["importlinter"]["contracts"]
    assert not any(key.startswith("ignore") for one in contracts for key in one)
    return [re.findall(r"\w+", layer) for layer in contracts[0]["layers"]]


def test_the_contracts_hold():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_page_has_every_room_in_the_order_of_the_contract():
    table = PAGE.read_text(encoding="utf-8").split("## The rooms")[1].split("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [re.findall(r"`(\w+)`", row) for row in rows] == layers()[1:]


def test_files_that_the_page_names_are_there():
    named = re.findall(r"`([\w/]+\.py|\w+/)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for name in named:
        found = [place for place in (PACKAGE, PACKAGE / "reasoning") if (place / name).exists()]
        assert found, name


def test_few_things_lie_at_the_top():
    modules = [file for file in PACKAGE.glob("*.py")]
    rooms = [folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()]
    assert len(modules) <= 6 and len(rooms) <= 19


def test_no_two_classes_share_a_name():
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    counts = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert len(counts) > 150
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.processes
def test_a_recipe_is_read_without_torch():
    code = (
        "import sys, kava; kava.load_recipe('recipes/quickstart/kava.yaml');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
