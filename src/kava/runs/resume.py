"""Checkpoints that a training goes on from: which there are, and whether they are whole."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kava.errors import KavaError
from kava.system.files import write_json

_STATE, SEAL = "trainer_state.json", "sha256.json"


def last_checkpoint(run: Path) -> str:
    """The newest checkpoint of a run that was written to its end.

    One whose writing was cut off lacks the last file, and is passed over.

    Raises:
        KavaError: there is none; or it has been damaged since. An older one is not taken in its
            place unasked.
    """
    found = _checkpoints(run)
    if not found:
        raise KavaError(
            f"{run}: no complete checkpoint to resume from; start anew with another --output",
            code="runs.no-checkpoint",
            key=str(run),
        )
    problem = find_corruption(found[-1])
    if problem is None:
        return str(found[-1])
    whole = [folder for folder in found[:-1] if not find_corruption(folder)]
    raise KavaError(
        f"{problem}; "
        + (
            f"delete {found[-1]}, and --resume goes on from {whole[-1].name}, which is whole"
            if whole
            else "no other checkpoint here is whole: start anew with another --output"
        ),
        code=problem.code,
        key=problem.key,
    )


def has_checkpoint(run: Path) -> bool:
    """Whether a run can be resumed."""
    return bool(_checkpoints(run))


def write_checksums(folder: Path) -> None:
    """Write down the hash of each file that a training goes on from, once all are there.

    SHA-256 takes a second for 1 to 2 GB where the processor has instructions for it: 1 s for the
    1.1 GB of a 3B backbone's LoRA checkpoint, half a minute for the 38 GB of a full one, which
    then still lie in memory. A resumption reads them once more than it otherwise would.
    """
    write_json(folder / SEAL, {str(f.relative_to(folder)): _hash(f) for f in _files(folder)})


def find_corruption(folder: Path) -> KavaError | None:
    """The error for the first file of a checkpoint that is missing or damaged; None if none is.

    Where there are no hashes (kava did not write them before, or was killed just then), a flipped
    bit in a file of weights is not seen.
    """
    parts = [part for part in _PARTS if (folder / part).is_dir()]
    if not parts:
        return _missing(folder, "neither adapter nor backbone is there")
    if not next((folder / parts[0]).glob("*.safetensors"), None):
        return _missing(folder / parts[0], "there are no weights here")
    try:
        hashes = _json(folder / SEAL) if (folder / SEAL).is_file() else {}
    except ValueError:
        return _damaged(folder / SEAL)
    for file in dict.fromkeys([*_files(folder), *(folder / name for name in hashes)]):
        if not file.is_file():
            return _missing(file, "this file of the checkpoint is missing")
        known = hashes.get(str(file.relative_to(folder)))
        if not _whole(file) or (known and _hash(file) != known):
            return _damaged(file)
    return None


def _missing(file: Path, why: str) -> KavaError:
    return KavaError(f"{file}: {why}", code="reasoning.file-missing", key=str(file))


def _damaged(file: Path) -> KavaError:
    return KavaError(f"{file}: damaged", code="reasoning.damaged", key=str(file))


_PARTS = ("adapter", "backbone")


def _files(folder: Path) -> list[Path]:
    """Those that a training goes on from, there or not; small ones first."""
    names = (_STATE, "kava.json", "recipe.yaml", "scheduler.pt", "kava.safetensors", "optimizer.pt")
    found = [
        file
        for kind in ("json", "safetensors")
        for part in _PARTS
        for file in sorted((folder / part).glob(f"*.{kind}"))
    ]
    return [*(folder / name for name in names), *found]


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _json(file: Path) -> dict[str, Any]:
    """Raises ValueError where it is not a JSON object."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(file)
    return found


def _whole(file: Path) -> bool:
    """Whether a file is what its name says, as far as it can be told without its hash."""
    try:
        if file.name == _STATE:
            state, step = _json(file), int(file.parent.name.rpartition("-")[2])
            return state["global_step"] == step and state["max_steps"] >= step
        if file.suffix == ".json":
            _json(file)
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares its header with the file's length
                pass
        elif file.suffix == ".pt":
            with zipfile.ZipFile(file) as parts:  # what torch.save writes, with sums of its parts
                return parts.testzip() is None
    except _BROKEN:
        return False
    return True


#: What reading a damaged file may raise; zipfile lets through what it meets inside.
_BROKEN = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SafetensorError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def _checkpoints(run: Path) -> list[Path]:
    # The Trainer writes its state last, so a folder without it was cut off.
    complete = [
        folder
        for folder in (run / "checkpoints").glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", folder.name) and (folder / _STATE).is_file()
    ]
    return sorted(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))


#: Checkpoints to resume from that the trainer keeps.
KEPT = 2
