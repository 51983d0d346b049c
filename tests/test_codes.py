"""Every error has a stable code: `room.what-is-wrong`, written where the error is made."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "kava"
ROOMS = (
    "backbones", "bench", "cli", "data", "demo", "evaluation", "inference", "inspect", "lm_eval",
    "reasoning", "recipe", "report", "runs", "serve", "sweeps", "system", "training",
    "vllm",
)  # fmt: skip
ERRORS = ("KavaError", "NotAvailable", "unknown_name")
CODE = re.compile(r"[a-z_]+\.[a-z0-9-]+")


def is_code(value):
    """A literal of its form, a choice of two, or what another error or process hands on."""
    if isinstance(value, ast.IfExp):
        return is_code(value.body) and is_code(value.orelse)
    if isinstance(value, ast.Constant):
        return isinstance(value.value, str) and bool(CODE.fullmatch(value.value))
    return getattr(value, "attr", getattr(value, "id", "")) == "code"


def without_code(source):
    """Lines in which an error is made that has none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS:
            codes = [word.value for word in node.keywords if word.arg == "code"]
            if not codes or not is_code(codes[0]):
                yield node.lineno


@pytest.mark.parametrize("room", (*ROOMS, "quickstart.py"))
def test_every_error_has_a_code(room):
    files = [SOURCE / room] if room.endswith(".py") else sorted((SOURCE / room).rglob("*.py"))
    assert files
    lacking = {file.name: list(without_code(file.read_text("utf-8"))) for file in files}
    assert {name: lines for name, lines in lacking.items() if lines} == {}


def test_every_room_is_looked_at():
    assert sorted(path.parent.name for path in SOURCE.glob("*/__init__.py")) == sorted(ROOMS)


@pytest.mark.parametrize(
    "call,fine",
    (
        ('KavaError("no")', False),
        ('unknown_name("a", "b", [], code="room.No")', False),
        ('KavaError("no", code="room")', False),
        ('KavaError("no", code=name)', False),
        ('KavaError("no", code="room.a" if in_use else "")', False),
        ('NotAvailable("no", code=f"room.{name}")', False),
        ('KavaError("no", code="room.what-is-wrong")', True),
        ('KavaError("no", code="room.a" if in_use else "room.b")', True),
        ('KavaError("no", code=error.code)', True),
    ),
)
def test_an_error_without_a_code_is_seen(call, fine):
    assert list(without_code(call)) == ([] if fine else [1])
