"""What a result file says of how it came about."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kava import __version__, links
from kava.errors import writing

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def provenance() -> dict[str, Any]:
    """Versions, machine, command, commit and time."""
    return {
        "versions": {"python": platform.python_version(), **versions(*_PACKAGES)},
        "machine": machine(),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of kava, installed or not, and of those packages that are installed."""
    found = {"kava": __version__}
    for package in packages:
        with suppress(PackageNotFoundError):  # `kava bench` runs without `datasets`
            found[package] = version(package)
    return found


def _program() -> list[str]:
    """What was called: `kava`, or a script by its place in the project."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[2]
    if script.suffix == ".py" and script.is_relative_to(root / "benchmarks"):
        return ["python", script.relative_to(root).as_posix()]
    return ["kava"]


def machine() -> dict[str, Any]:
    """Processor, cores, memory and accelerator."""
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
    """The checkout's commit, with `+` where files differ from it; None outside a checkout."""
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


def check_writable(file: Path) -> None:
    """Check that `write_json` could write here, before what it writes is found out.

    Nothing is made or changed: folders that are not there are taken to be possible where a file is.

    Raises:
        KavaError: names the path and the system's reason; or a link, see `kava.links`.
    """
    links.check(file)
    with writing(file, "give another place"):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        there = next(folder for folder in file.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def write_json(file: Path, value: Any, below: Path | None = None) -> None:
    """Write whole or not at all; see `write_whole`."""
    write_whole(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n", below)


def write_whole(file: Path, content: str | bytes, below: Path | None = None) -> None:
    """Write whole or not at all, text in UTF-8; folders that are not there are made.

    Args:
        below: the folder that was given, in which no link is followed (`kava.links`); that of the
            file, if not given.

    Raises:
        KavaError: the disk is full or fails, or there is a link; a file that was there is as it
            was.
    """
    links.check(file, below)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        links.replace(file, content.encode() if isinstance(content, str) else content)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "unknown"
