"""Export a checkpoint as one folder in the format of transformers, for inference engines.

config.json          the backbone's, with `architectures: [Kava...]` and a section `kava`
model*.safetensors   the backbone with its adapter merged; kava's own weights as `kava.*`
tokenizer.json ...   the tokenizer with the three special tokens
kava.json, recipe.yaml, README.md   as in a checkpoint
backbone.gguf        if requested: the merged backbone for llama.cpp

transformers reads the folder as the plain backbone and ignores `kava.*`; kava reads it as the
checkpoint that it was made from; an engine with a plugin for the architecture can run the latents.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from kava.backbones import loading, to_gguf
from kava.errors import KavaError
from kava.reasoning import checkpoint
from kava.reasoning.reasoner import Reasoner
from kava.system import links
from kava.system.files import explain_disk_errors, write_whole
from kava.system.progress import no_bars

#: Version of the section `kava` in config.json.
FORMAT = 1
_CONFIG = "config.json"
_GGUF = "backbone.gguf"


def export(reasoner: Reasoner, folder: str | Path, gguf: bool = False) -> Path:
    """Write a reasoner as one folder of plain files; an adapter is merged into it in place.

    The weights keep their dtype. The folder is written under a temporary name next to its place
    and then renamed, so it is never there in part.

    Args:
        reasoner: what to export.
        folder: a folder that does not exist yet.
        gguf: also write the backbone as a GGUF file.

    Returns:
        The folder.

    Raises:
        KavaError: the folder exists, is a symbolic link, or cannot be written; or the backbone
            cannot be written as a GGUF file.
    """
    folder = Path(folder)
    if folder.exists() or folder.is_symlink():
        raise KavaError(
            f"{folder}: already exists; choose another --output",
            code="reasoning.export-exists",
            key=str(folder),
        )
    if gguf:
        to_gguf.check(reasoner.lm, folder / _GGUF)
    parts = folder.with_name(folder.name + ".partial")
    links.check(parts)
    shutil.rmtree(parts, ignore_errors=True)
    try:
        with explain_disk_errors(folder):
            parts.mkdir(parents=True)
            _write(reasoner.merge(), parts)
            if gguf:
                to_gguf.write(reasoner.lm, parts / _GGUF)
            parts.rename(folder)
    except BaseException:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    return folder


def _write(reasoner: Reasoner, folder: Path) -> None:
    weights = dict(reasoner.lm.state_dict())
    reasoner.training_modules.clear()  # only a loss needs them
    own = checkpoint.own_weights(reasoner)
    weights |= {f"{loading.OWN_PREFIX}{name}": weight for name, weight in own.items()}
    with no_bars():
        reasoner.lm.save_pretrained(folder, state_dict=weights)
    file = folder / _CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    config["architectures"] = [f"Kava{name}" for name in config["architectures"]]
    config["kava"] = section(reasoner)
    write_whole(file, json.dumps(config, indent=2) + "\n")
    checkpoint.write_description(reasoner, folder, exported=True)


def section(reasoner: Reasoner) -> dict[str, Any]:
    """Return what an engine needs to run the latents, as stored in config.json."""
    recipe, unreadable = reasoner.recipe, reasoner.unreadable_ids
    with_prompt = getattr(reasoner.method, "begins_with_prompt", True)
    return {
        "format": FORMAT,
        "method": recipe.method,
        "num_latents": recipe.num_latents if reasoner.method.uses_latents else 0,
        "num_iterations": recipe.num_iterations if reasoner.method.iterates else None,
        "fixed_size": reasoner.method.fixed_size,
        "projection": recipe.projection if reasoner.method.uses_latents else "none",
        "prompt_ids": reasoner.encoder.prompt if with_prompt else [],
        "unreadable_ids": [] if unreadable is None else unreadable.nonzero().flatten().tolist(),
    }
