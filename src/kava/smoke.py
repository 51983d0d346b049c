"""`kava train --smoke`: the recipe's own code path on a tiny random backbone, in seconds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kava import assets, pretrained, registry
from kava import backbone as backbones
from kava import recipe as recipes
from kava import run as runs
from kava.adapter import USUAL_TARGETS
from kava.data import load_examples
from kava.errors import KavaError
from kava.progress import no_bars
from kava.recipe import Recipe
from kava.tokenization import train_tokenizer
from kava.types import ANSWER_PROMPT

STEPS, ROWS = 3, 32
LONGEST = 80  # tokens; more than the reasoning of any generated row has


def smoke_run(resolved: Recipe, output: Path | None, console: Console) -> None:
    """Run a few steps of a recipe; the folder is kept only if `output` is given."""
    with tempfile.TemporaryDirectory() as scratch:
        backbone = Path(scratch) / "backbone"
        weights = tiny_backbone(family(resolved), backbone)
        small = shrink(resolved, backbone)
        folder = output or Path(scratch) / "run"
        result = runs.train_run(small, folder, console, device="cpu")
        if output:
            # An adapter is of no use without the backbone it was trained on.
            shutil.copytree(backbone, folder / "backbone")
    console.print(
        f"smoke: {result['steps']} steps of '{resolved.method}' on a random "
        f"{family(resolved)} of {weights:,} weights and {ROWS} generated rows. "
        "It runs; nothing here is a result.",
        highlight=False,
    )


def family(resolved: Recipe) -> str:
    """The backbone's model type: of a local folder, else as the recipe says.

    Raises:
        KavaError: neither says, or the folder's config.json is none of transformers.
    """
    if local := assets.folder_with(resolved.backbone, "config.json"):
        try:
            return pretrained.load_config(local).model_type
        except (OSError, ValueError):
            raise KavaError(f"{local}: no config.json of a model of transformers") from None
    if resolved.family is None:
        raise KavaError("the recipe needs the key 'family', such as family: llama")
    return resolved.family


def tiny_backbone(model_type: str, folder: Path, seed: int = 0) -> int:
    """Save a tiny random backbone of a family with a tokenizer; returns its weights' number.

    Raises:
        KavaError: transformers knows no causal language model of that type, or it cannot be made
            so small, or it cannot think here.
    """
    rows = load_examples("synthetic", "train", limit=ROWS)
    texts = [t for row in rows for t in (row.question, *row.steps, ANSWER_PROMPT)]
    tokenizer = train_tokenizer(texts, 320, "single")
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    try:
        config = AutoConfig.for_model(model_type, **shape)
        model = pretrained.new_model(config, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise KavaError(
                f"family: '{model_type}' is no causal language model that transformers knows; "
                "it is the 'model_type' of the backbone's config.json"
            ) from None
        line = " ".join(str(error).split())[:200]
        raise KavaError(f"family: no tiny '{model_type}' can be made for --smoke: {line}") from None
    with no_bars():
        backbones.prepare(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def shrink(resolved: Recipe, backbone: Path, steps: int = STEPS) -> Recipe:
    """The same recipe with a few small steps on generated rows; the last is of its last stage."""
    tree = resolved.model_dump(by_alias=True)
    tree.update(backbone=str(backbone), revision=None)
    if tree["lora"]["targets"] == USUAL_TARGETS:  # with family=... they may have other names
        tree["lora"]["targets"] = None
    tree["data"] = {"train": "synthetic", "train_rows": ROWS}
    tree["train"] |= {"steps": steps, "epochs": None, "batch_size": 4, "micro_batch_size": 2}
    tree["train"] |= {"log_every": 1, "save_every": None, "precision": "fp32"}
    return recipes.validate(_all_stages(tree), "smoke")


def _all_stages(tree: dict) -> dict:
    # A curriculum is shortened so that its last stage begins before the last step.
    resolved = recipes.validate(tree, "smoke")
    method = registry.find("methods", resolved.method)(resolved)
    needed = method.last_stage_at(LONGEST)
    if needed:
        begins = (resolved.train.steps - 1) * resolved.train.batch_size / ROWS
        tree["method_options"] = method.options.scaled(begins / needed).model_dump()
    return tree
