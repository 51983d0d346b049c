"""pyright finds no error in four rooms, and in no other room more than before."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "kava"
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="its settings are part of a checkout only"
)

CLEAN = ("recipe", "reasoning", "backbones", "data")
#: Errors by room or module, with what `make test` installs. Numbers go down, and rooms go away.
BASELINE = {
    "__main__": 1, "bench": 5, "cli": 2, "demo": 14, "evaluation": 5, "inference": 10,
    "inspect": 8, "quickstart": 2, "report": 15, "serve": 24, "sweeps": 3, "system": 7,
    "training": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def errors():
    """Room or module to pyright's errors in it, a line each."""
    pyright = Path(sys.executable).with_name("pyright")
    needed = {"pyright": pyright.is_file(), "node, which pyright runs on": shutil.which("node")}
    if missing := [name for name, found in needed.items() if not found]:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("KAVA_NEED_PYRIGHT") == "1":
            pytest.fail(f"{reason}, and KAVA_NEED_PYRIGHT=1 asks for it")
        pytest.skip(reason)
    command = [pyright, "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | QUIET, timeout=900
    )
    _, brace, rest = done.stdout.partition("{")  # the wrapper may print a line of its own first
    assert brace, f"pyright ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
    report, found = json.loads(brace + rest), {}
    assert report["summary"]["filesAnalyzed"] == len(list(PACKAGE.rglob("*.py"))), report["summary"]
    for item in report["generalDiagnostics"]:
        if item["severity"] == "error":
            file, line = Path(item["file"]).relative_to(PACKAGE), item["range"]["start"]["line"]
            told = f"{file}:{line + 1}: {item['message']} ({item.get('rule')})"
            found.setdefault(file.parts[0].removesuffix(".py"), []).append(told)
    return found


#: pyright says that there is a newer one, and asks the network for it.
QUIET = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


@pytest.mark.parametrize("room", CLEAN)
def test_there_is_no_error(errors, room):
    assert errors.get(room, []) == []


def test_elsewhere_there_are_no_more_than_before(errors):
    counts = Counter({room: len(lines) for room, lines in errors.items() if room not in CLEAN})
    worse = {room: errors[room] for room in counts if counts[room] > BASELINE.get(room, 0)}
    assert not worse, f"new errors: {json.dumps(worse, indent=1)}"
    better = {room: counts[room] for room in BASELINE if counts[room] < BASELINE[room]}
    assert not better, f"fewer errors than in BASELINE; lower it to {better}"
