"""A finished run as a backbone: LOTUS, for one, starts from a model that writes its steps out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kava.errors import KavaError


def is_run(folder: Path) -> bool:
    """Whether a folder is a run or a checkpoint of this package."""
    return any((place / "kava.json").is_file() for place in (folder, folder / "checkpoint"))


def load(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    """The run's language model, an adapter merged into its weights, and its tokenizer.

    Raises:
        KavaError: its method thinks in latents, so that the language model is only a part of it;
            or any of `Reasoner.from_pretrained`.
    """
    from kava import backbone as backbones  # which calls this
    from kava.model import Reasoner

    reasoner = Reasoner.from_pretrained(folder)
    if reasoner.method.uses_latents:
        raise KavaError(
            f"backbone {folder}: a run of '{reasoner.recipe.method}', which thinks in latents; "
            "a run can be a backbone if its method writes, such as cot"
        )
    lora = reasoner.recipe.adapter == "lora"
    model = reasoner.backbone.merge_and_unload() if lora else reasoner.lm
    # peft had frozen what is the whole model now.
    return backbones.cast(model, dtype).requires_grad_(True), reasoner.tokenizer
