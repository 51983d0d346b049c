"""The script for the first minutes on a GPU, with tiny shapes on a stand-in for the device."""

import json
import sys
import time

import gpu_first
import pytest
from accelerator import accelerator, waits
from test_accelerator import placed

__all__ = ["placed"]


@pytest.fixture
def device():
    with accelerator() as device:
        yield device


def test_every_stage_runs_and_is_right(placed, tmp_path):
    session = gpu_first.Session(placed, True, tmp_path / "out", seconds=1e5, patience=1e3)
    session.waits = lambda: sum(waits.values())
    gpu_first.run(session, gpu_first.STAGES)
    told = json.loads((tmp_path / "out/gpu_first.json").read_text())
    failed = {name: one["failed"] for name, one in told["stages"].items() if "failed" in one}
    assert not failed and told["claims"], told
    assert told["stages"].keys() == gpu_first.STAGES.keys()
    assert len(list((tmp_path / "out").iterdir())) <= 5


def test_what_fails_or_is_late_is_told_and_the_next_stage_runs(tmp_path):
    def broken(session, found):
        found["half"] = 1
        raise ValueError("no such kernel")

    def late(session, found):
        time.sleep(5)

    def fine(session, found):
        found["whole"] = {"right": True}

    session = gpu_first.Session(gpu_first.torch.device("cpu"), True, tmp_path)
    gpu_first.run(session, {"a": (9, broken), "b": (0.05, late), "c": (9, fine)})
    stages = json.loads((tmp_path / "gpu_first.json").read_text())["stages"]
    assert stages["a"]["half"] == 1 and stages["a"]["failed"] == "ValueError: no such kernel"
    assert stages["b"]["failed"].startswith("TimeoutError") and "failed" not in stages["c"]
    assert session.told["claims"]  # nothing was wrong, only not measured


@pytest.mark.parametrize("wrong", [{"right": False}, None])
def test_where_a_result_is_wrong_nothing_is_claimed(wrong, tmp_path):
    def stage(session, found):
        if wrong is None:
            raise ValueError
        found["gradients"] = wrong

    session = gpu_first.Session(gpu_first.torch.device("cpu"), True, tmp_path)
    gpu_first.run(session, {"2 same": (9, stage)})
    assert json.loads((tmp_path / "gpu_first.json").read_text())["claims"] is False


def test_missing_packages_are_told_with_their_pins(monkeypatch, capsys):
    monkeypatch.setitem(gpu_first.NEEDED, "no_such_module", "pydantic")
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--wheels"])
    gpu_first.main()
    said = capsys.readouterr().out
    assert "missing: no_such_module" in said
    assert "pip download -d wheels -c constraints.txt pydantic==" in said
