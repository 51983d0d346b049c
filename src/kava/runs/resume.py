"""Find the checkpoints that training can be resumed from, and check that they are intact."""

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

_STATE, CHECKSUMS_FILE = "trainer_state.json", "sha256.json"


def last_checkpoint(run: Path) -> str:
    """Return the newest checkpoint of a run that was completely written.

    A checkpoint whose writing was interrupted lacks its last file, and is skipped.

    Raises:
        KavaError: if there is none, or if the newest one is damaged. An older one is never used
            instead, unless the user deletes the newest.
    """
    found = _checkpoints(run)
    if not found:
        raise KavaError(
            f"{run}: no complete checkpoint to resume from; start again with another --output",
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
            f"delete {found[-1]}, and --resume continues from {whole[-1].name}, which is complete"
            if whole
            else "no other checkpoint is complete: start again with another --output"
        ),
        code=problem.code,
        key=problem.key,
    )


def has_checkpoint(run: Path) -> bool:
    """Whether a run can be resumed."""
    return bool(_checkpoints(run))


def write_checksums(folder: Path) -> None:
    """Write the hash of each file that is needed to resume, after all of them are written.

    SHA-256 takes a second for 1 to 2 GB on a processor with instructions for it: 1 s for the 1.1 GB
    of a LoRA checkpoint of a 3B backbone, and half a minute for the 38 GB of a full one, which are
    then still in the page cache. Resuming reads the files once more than it would without
    checksums.
    """
    write_json(
        folder / CHECKSUMS_FILE, {str(f.relative_to(folder)): _hash(f) for f in _files(folder)}
    )


def find_corruption(folder: Path) -> KavaError | None:
    """Return the error for the first file of a checkpoint that is missing or damaged, or None.

    Without checksums (written by an older kava, or killed just before writing them), a flipped bit
    in a file of weights is not detected.
    """
    parts = [part for part in _PARTS if (folder / part).is_dir()]
    if not parts:
        return _missing_error(folder, "contains neither an adapter nor a backbone")
    if not next((folder / parts[0]).glob("*.safetensors"), None):
        return _missing_error(folder / parts[0], "contains no weights")
    try:
        hashes = _json(folder / CHECKSUMS_FILE) if (folder / CHECKSUMS_FILE).is_file() else {}
    except ValueError:
        return _damaged_error(folder / CHECKSUMS_FILE)
    for file in dict.fromkeys([*_files(folder), *(folder / name for name in hashes)]):
        if not file.is_file():
            return _missing_error(file, "this file of the checkpoint is missing")
        known = hashes.get(str(file.relative_to(folder)))
        if not _is_intact(file) or (known and _hash(file) != known):
            return _damaged_error(file)
    return None


def _missing_error(file: Path, why: str) -> KavaError:
    return KavaError(f"{file}: {why}", code="reasoning.file-missing", key=str(file))


def _damaged_error(file: Path) -> KavaError:
    return KavaError(f"{file}: damaged", code="reasoning.damaged", key=str(file))


_PARTS = ("adapter", "backbone")


def _files(folder: Path) -> list[Path]:
    """List the files that are needed to resume, whether they exist or not; small files first."""
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
    """Read a JSON object; raise ValueError if the file contains anything else."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(file)
    return found


def _is_intact(file: Path) -> bool:
    """Whether a file is intact, as far as that can be checked without its hash."""
    try:
        if file.name == _STATE:
            state, step = _json(file), int(file.parent.name.rpartition("-")[2])
            return state["global_step"] == step and state["max_steps"] >= step
        if file.suffix == ".json":
            _json(file)
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares the header with the length of the file
                pass
        elif file.suffix == ".pt":
            with zipfile.ZipFile(file) as parts:  # the format of torch.save, with checksums
                return parts.testzip() is None
    except _BROKEN:
        return False
    return True


#: Errors that reading a damaged file may raise; zipfile passes on those of its decompressors.
_BROKEN = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SafetensorError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def _checkpoints(run: Path) -> list[Path]:
    # The Trainer writes its state last, so a folder without it was not completely written.
    complete = [
        folder
        for folder in (run / "checkpoints").glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", folder.name) and (folder / _STATE).is_file()
    ]
    return sorted(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))


#: Number of checkpoints that the Trainer keeps.
MAX_CHECKPOINTS = 2
