"""Record how a result came about: versions, machine, command, commit and time."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kava.system import distributed
from kava.system.version import __version__

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def provenance() -> dict[str, Any]:
    """Return versions, machine, command, commit and time, for a result file."""
    return {
        "versions": {"python": platform.python_version(), **versions(*_PACKAGES)},
        "machine": machine(),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of kava, installed or not, and of those `packages` that are installed."""
    found = {"kava": __version__}
    for package in packages:
        with suppress(PackageNotFoundError):  # `kava bench` runs without `datasets`
            found[package] = version(package)
    return found


def _program() -> list[str]:
    """Return what was run: `kava`, or a script by its path in the project."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[3]
    if script.suffix == ".py" and script.is_relative_to(root / "benchmarks"):
        return ["python", script.relative_to(root).as_posix()]
    return ["kava"]


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, threads and accelerator."""
    import torch

    described = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        described["accelerator"] = torch.cuda.get_device_name()
    return described


def commit() -> str | None:
    """Return the checkout's commit, with `+` if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except OSError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "unknown"


def default_device() -> str:
    """Return `cuda` if available, unless the CPU was requested.

    With several processes, return the device of this one.
    """
    if distributed.world_size() > 1:
        return distributed.device()
    return "cuda" if torch.cuda.is_available() and not distributed.asked_for_cpu() else "cpu"
