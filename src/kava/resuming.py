"""Checkpoints that a training goes on from: which there are, and whether they are whole."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kava.errors import KavaError

_STATE = "trainer_state.json"


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
            f"{run}: no complete checkpoint to resume from; start anew with another --output"
        )
    problem = damage(found[-1])
    if not problem:
        return str(found[-1])
    whole = [folder for folder in found[:-1] if not damage(folder)]
    raise KavaError(
        f"{problem}; "
        + (
            f"delete {found[-1]}, and --resume goes on from {whole[-1].name}, which is whole"
            if whole
            else "no other checkpoint here is whole: start anew with another --output"
        )
    )


def has_checkpoint(run: Path) -> bool:
    """Whether a run can be resumed."""
    return bool(_checkpoints(run))


def damage(folder: Path) -> str:
    """The first file of a checkpoint that is missing or cut off, in words; empty if none is."""
    files = [folder / name for name in (_STATE, "kava.json", "recipe.yaml", "kava.safetensors")]
    files += [folder / name for name in ("optimizer.pt", "scheduler.pt")]
    parts = [part for part in ("adapter", "backbone") if (folder / part).is_dir()]
    if not parts:
        return f"{folder}: neither adapter nor backbone is there"
    weights = sorted((folder / parts[0]).glob("*.safetensors"))
    if not weights:
        return f"{folder / parts[0]}: there are no weights here"
    for file in [*files, *weights]:
        if not file.is_file():
            return f"{file}: this file of the checkpoint is missing"
        if not _whole(file):
            return f"{file}: damaged"
    return ""


def _whole(file: Path) -> bool:
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares its header with the file's length
                pass
        elif file.suffix == ".pt":
            with zipfile.ZipFile(file):  # what torch.save writes; its index comes last
                pass
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def _checkpoints(run: Path) -> list[Path]:
    # The Trainer writes its state last, so a folder without it was cut off.
    complete = [f for f in (run / "checkpoints").glob("checkpoint-*") if (f / _STATE).is_file()]
    return sorted(complete, key=lambda folder: int(folder.name.split("-")[1]))
