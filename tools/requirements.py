"""Write `requirements-tested.txt`: the tested versions with the SHA-256 of each of their files.

    python -m tools.requirements [--uv UV] [TORCH.whl ...]

The versions are those of `constraints.txt`. uv asks the package index for the hashes, which are
those of all platforms. Wheels of torch that are from another index, such as the CPU builds, are
given as files, and their hashes added. What only the CUDA build of torch needs on Linux goes to
`requirements-tested-cuda.txt`, so that other builds do not install it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE, CUDA = "requirements-tested.txt", "requirements-tested-cuda.txt"
EXTRAS = ("serve", "demo", "docs", "gguf", "slurm", "test")  # what `make test` installs
_CUDA = re.compile(r"(nvidia-|cuda-|triton==)")
_HEAD = "# Written by `python -m tools.requirements` from constraints.txt, with hashes.\n"


def split(text: str) -> tuple[list[str], list[str]]:
    """Split the output of uv into requirements, each with its lines of hashes: ours, and CUDA's."""
    whole = [one for one in re.split(r"\n(?=[A-Za-z0-9])", text.strip()) if one]
    cuda = [one for one in whole if _CUDA.match(one)]
    return [one for one in whole if one not in cuda], cuda


def with_wheels(requirement: str, wheels: list[Path]) -> str:
    """Add the hashes of wheels to the requirement of torch."""
    if not requirement.startswith("torch=="):
        return requirement
    digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
    return "".join([requirement, *(f" \\\n    --hash=sha256:{digest}" for digest in digests)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--uv", default="uv", help="the program uv")
    parser.add_argument("wheels", nargs="*", type=Path, help="more wheels of the pinned torch")
    given = parser.parse_args()
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    words = "--universal --python-version 3.11 --generate-hashes --no-annotate --no-header -q"
    done = subprocess.run(
        [given.uv, "pip", "compile", "pyproject.toml", *extras, "-c", "constraints.txt",
         *words.split()],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    ours, cuda = split(done.stdout)
    ours = [with_wheels(one, given.wheels) for one in ours]
    for name, found in ((FILE, ours), (CUDA, cuda)):
        (ROOT / name).write_text(_HEAD + "\n".join(found) + "\n", encoding="utf-8")
        print(f"{name}: {len(found)} packages")


if __name__ == "__main__":
    main()
