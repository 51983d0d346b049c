"""Open a reasoner from a path or Hub name: a run, a checkpoint or a plain backbone."""

import torch
from rich.console import Console

from kava.backbones import faults, gguf
from kava.backbones.device import describe
from kava.errors import KavaError
from kava.reasoning import checkpoint
from kava.reasoning.reasoner import Reasoner
from kava.system import assets, hub
from kava.system.environment import default_device
from kava.system.text import print_text


def device_line(reasoner: Reasoner, rows: int) -> str:
    """Describe where and how a reasoner computes answers, in one line.

    Args:
        rows: number of questions in one forward pass.
    """
    half = reasoner.follows_training and reasoner.recipe.train.autocasts(reasoner.device.type)
    return describe(reasoner.lm, half, rows)


def print_device(reasoner: Reasoner, rows: int, console: Console, name: str = "") -> None:
    """Print `device_line`, after the name of the model where a command has several."""
    line = device_line(reasoner, rows)
    print_text(console, f"{name}: {line}" if name else line)


def open_reasoner(
    path: str,
    backbone: str | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Reasoner:
    """Open a run folder, a checkpoint or a plain backbone as a reasoner.

    A plain backbone generates its chain of thought as text. Checkpoints and backbones may be on the
    Hub.

    Args:
        path: a folder, or a name on the Hub.
        backbone: where the backbone of an adapter is; see `Reasoner.from_pretrained`.
        dtype: see `Reasoner.from_pretrained`. A plain backbone is in bf16 on a GPU by default.
        revision: branch, tag or commit of `path` on the Hub.

    Raises:
        KavaError: the folder is none of these or does not exist, the dtype is not supported, or a
            local folder is given with a revision.
    """
    device = default_device()
    # A plain backbone is not trained here, and bf16 is the dtype of most published weights.
    plain = dtype or ("bfloat16" if device.startswith("cuda") else None)
    try:
        folder = assets.find(path)
    except KavaError:
        if hub.is_name(path) and hub.has_file(path, "kava.json", revision):
            return Reasoner.from_pretrained(
                path, backbone, device=device, revision=revision, dtype=dtype
            )
        try:
            # a Hub name, or an error
            return Reasoner.from_backbone(path, revision, device=device, dtype=plain)
        except hub.NotAvailable as error:
            raise KavaError(
                f"{error.reason}; give the folder of a run, a checkpoint or a transformers model; "
                "for a model on the Hub, go online and log in with `hf auth login`",
                code="reasoning.not-had",
                key=str(path),
            ) from None
    if revision:
        raise KavaError(
            f"--revision {revision}: {folder} is a local folder, which has no revisions; omit it, "
            "or give a name on the Hub",
            code="reasoning.revision-of-folder",
            key="--revision",
        )
    if checkpoint.is_checkpoint(folder):
        return Reasoner.from_pretrained(path, backbone, device=device, dtype=dtype)
    if (folder / "config.json").is_file() or gguf.is_file(folder):
        if backbone:
            raise KavaError(
                f"{folder}: is a transformers model, not an adapter; omit {backbone}",
                code="reasoning.backbone-unwanted",
                key=str(backbone),
            )
        return Reasoner.from_backbone(path, device=device, dtype=plain)
    faults.check(folder)
    raise KavaError(
        f"{folder}: neither a kava run or checkpoint (kava.json) nor a transformers model "
        "(config.json)",
        code="reasoning.not-a-model",
        key=str(folder),
    )
