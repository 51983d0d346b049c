"""`kava train --smoke`: run a recipe's own code path on a tiny random backbone, in seconds."""

import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from kava.backbones import pretrained
from kava.backbones.lora import USUAL_TARGETS
from kava.backbones.tiny import tiny_backbone
from kava.errors import KavaError
from kava.reasoning.resolve import validate_resolved
from kava.recipe import registry
from kava.recipe.schema import Recipe
from kava.system import assets
from kava.training import run as runs

STEPS, ROWS = 3, 32
MAX_TOKENS = 80  # tokens; no generated chain of thought is longer


def smoke_run(resolved: Recipe, output: Path | None, console: Console) -> None:
    """Run a few steps of a recipe; the run folder is kept only if `output` is given."""
    with tempfile.TemporaryDirectory() as scratch:
        backbone = Path(scratch) / "backbone"
        weights = tiny_backbone(family(resolved), backbone)
        small = shrink(resolved, backbone)
        folder = output or Path(scratch) / "run"
        result = runs.train_run(small, folder, console, device="cpu")
        if output:
            # An adapter is useless without the backbone that it was trained on.
            shutil.copytree(backbone, folder / "backbone")
    console.print(
        f"smoke: {result['steps']} steps of '{resolved.method}' on a random "
        f"{family(resolved)} of {weights:,} weights and {ROWS} generated rows. "
        "It runs; its numbers are not results.",
        highlight=False,
    )


def family(resolved: Recipe) -> str:
    """Return the backbone's model type: from its local folder, otherwise from the recipe.

    Raises:
        KavaError: if neither gives it, or if the folder's config.json is not one of transformers.
    """
    if local := assets.folder_with(resolved.backbone, "config.json"):
        try:
            return pretrained.load_config(local).model_type
        except (OSError, ValueError):
            raise KavaError(
                f"{local}: config.json of a transformers model was not found",
                code="backbones.no-config",
                key=str(local),
            ) from None
    if resolved.family is None:
        raise KavaError(
            "the recipe needs the key 'family', such as family: llama",
            code="recipe.missing-key",
            key="family",
        )
    return resolved.family


def shrink(resolved: Recipe, backbone: Path, steps: int = STEPS) -> Recipe:
    """Return the recipe with a few small steps on generated examples.

    The last step is in the last stage of the method.
    """
    tree = resolved.model_dump(by_alias=True)
    tree.update(backbone=str(backbone), revision=None)
    if tree["lora"]["targets"] == USUAL_TARGETS:  # with family=..., the layers may have other names
        tree["lora"]["targets"] = None
    tree["data"] = {"train": "synthetic", "train_rows": ROWS}
    tree["train"] |= {"steps": steps, "epochs": None, "batch_size": 4, "micro_batch_size": 2}
    tree["train"] |= {"log_every": 1, "save_every": None, "precision": "fp32"}
    return validate_resolved(_all_stages(tree), "smoke")


def _all_stages(tree: dict) -> dict:
    # Shorten a curriculum, so that its last stage begins before the last step.
    resolved = validate_resolved(tree, "smoke")
    method = registry.find("methods", resolved.method)(resolved)
    needed = method.last_stage_at(MAX_TOKENS)
    if needed:
        begins = (resolved.train.total_steps(ROWS) - 1) * resolved.train.batch_size / ROWS
        tree["method_options"] = method.options.scale_epochs(begins / needed).model_dump()
    return tree
