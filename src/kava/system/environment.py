"""Record how a result came about: versions, machine, command, commit and time."""

import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kava.errors import KavaError
from kava.system import distributed
from kava.system.version import __version__

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def provenance() -> dict[str, Any]:
    """Return versions, machine, command, commit and time, for a result file."""
    return {
        "versions": {"python": platform.python_version(), **versions(*_PACKAGES)},
        "machine": machine(),
        "command": command(),
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


def command() -> str:
    """Return the command line for a result file, which may be published.

    Secrets and the name of the home folder are removed. Only kava's own command and the scripts in
    `benchmarks/` are recorded with their arguments; any other program may have private ones.
    """
    program = _program()
    if program is None:
        return "called from Python"
    return " ".join(map(_quote, [*program, *_redact(sys.argv[1:])]))


def own_words() -> list[str] | None:
    """Return the arguments of kava's own command, with secrets and the home folder removed.

    It is None if another program imports kava.
    """
    return None if _program() is None else _redact(sys.argv[1:])


def _program() -> list[str] | None:
    """Return how the running program is recorded: `kava`, or a script of the project; else None."""
    called = sys.argv[0] if sys.argv else ""
    script = Path(called).resolve()
    root = Path(__file__).resolve().parents[3]
    if script.suffix == ".py" and script.is_relative_to(root / "benchmarks"):
        return ["python", script.relative_to(root).as_posix()]
    own = script == Path(__file__).resolve().parents[1] / "__main__.py"  # python -m kava
    return ["kava"] if own or Path(called).name in ("kava", "kava.exe") else None


_HIDDEN = "***"
#: The last part of the name of an option, a recipe's key or a variable that holds a secret.
_SECRET = (
    r"(?:api|access|auth|private|secret)?[-_]?"
    r"(?:key|token|secret|password|passwd|passphrase|pwd|credentials?|authorization)"
)
_SECRET_OPTION = re.compile(rf"--?(?:[\w.-]*[-_.])?{_SECRET}", re.IGNORECASE)
#: `token=...`, also inside a value: `{hf_token: ...}`.
_SECRET_VALUE = re.compile(
    rf"(?<![\w-])((?:--?)?(?:[\w.-]*[-_.])?{_SECRET}[\"']?(?:=|:\s+|:(?=[\"']))\s*)"
    r"(\"[^\"]*\"?|'[^']*'?|(?:Bearer\s+)?[^\s,}\]]+)",
    re.IGNORECASE,
)
#: What is a secret by its looks: tokens of the Hub and of OpenAI, a password in an address.
_SECRET_LOOKS = re.compile(r"\b(?:hf_|sk-)[\w-]{16,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


def _redact(words: list[str]) -> list[str]:
    """Return the arguments of a command without secrets and the name of the home folder."""
    found: list[str] = []
    is_secret = False
    for word in words:
        shown = _HIDDEN if is_secret else _without_home(_without_secrets(word))
        is_secret = not is_secret and bool(_SECRET_OPTION.fullmatch(word))
        found.append(shown)
    return found


def _without_secrets(word: str) -> str:
    name, sign, _ = word.partition("=")
    if sign and re.fullmatch(rf"(?:--?)?(?:[\w.-]*[-_.])?{_SECRET}", name, re.IGNORECASE):
        return f"{name}={_HIDDEN}"  # whatever blanks and commas its value has
    return _SECRET_LOOKS.sub(_HIDDEN, _SECRET_VALUE.sub(rf"\1{_HIDDEN}", word))


def _without_home(word: str) -> str:
    home = os.path.expanduser("~").rstrip("/")
    for folder in {home, os.path.realpath(home)} - {"", "~", "/"}:
        word = re.sub(rf"(?<![\w./-]){re.escape(folder)}(?![\w.-])", "~", word)
    return word


def _quote(word: str) -> str:
    """Quote an argument for a shell, so that `~/...` is still expanded."""
    return f"~/{shlex.quote(word[2:])}" if word[:2] == "~/" and word[2:] else shlex.quote(word)


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

    Raises:
        KavaError: there is an NVIDIA GPU that torch cannot use, and the CPU was not requested.
    """
    _check_cuda()
    if distributed.world_size() > 1:
        return distributed.device()
    return "cuda" if torch.cuda.is_available() and not distributed.cpu_requested() else "cpu"


def _check_cuda() -> None:
    """Refuse to compute on the CPU only because torch cannot use the NVIDIA GPU of this machine.

    A GPU that is hidden by `CUDA_VISIBLE_DEVICES`, or that this process may not open, is ignored.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if hidden or distributed.cpu_requested() or torch.cuda.is_available() or not _has_nvidia_gpu():
        return
    why = "it finds no device"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # an old driver; a build without CUDA
        why = " ".join(str(error).split()).partition(". ")[0]
    raise KavaError(
        f"this machine has an NVIDIA GPU, but torch {torch.__version__} cannot use it ({why}); "
        "install a build of torch that fits the driver, or compute on the CPU with "
        "`kava --cpu COMMAND`",
        code="system.cuda-unusable",
        key="--cpu",
    )


def _has_nvidia_gpu() -> bool:
    """Whether this process can open the device file of an NVIDIA GPU."""
    for file in _DEVICES.glob("nvidia[0-9]*"):
        with suppress(OSError):
            os.close(os.open(file, os.O_RDWR))
            return True
    return False


_DEVICES = Path("/dev")
