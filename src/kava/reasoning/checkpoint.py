"""A checkpoint folder: written whole, loaded strictly, safetensors only.

kava.json           format, method, backbone identity, tokenizer size, versions
README.md           the model card
recipe.yaml         the resolved recipe
kava.safetensors    the three token rows and the projection
adapter/            peft's own format            (adapter: lora)
backbone/           transformers' own format     (adapter: full)
tokenizer.json ...  the tokenizer with the three tokens
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kava.backbones import loading
from kava.errors import KavaError
from kava.reasoning.interface import ReasonerProtocol
from kava.reasoning.model_card import card
from kava.reasoning.resolve import load_resolved
from kava.recipe import schema
from kava.system import assets, hub, links
from kava.system.environment import versions
from kava.system.files import write_whole, writing
from kava.system.progress import no_bars

FORMAT = 1
_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def save(
    reasoner: ReasonerProtocol,
    folder: str | Path,
    weights: dict[str, Tensor] | None = None,
    below: Path | None = None,
) -> None:
    """Write into a folder beside and rename, so that a half-written checkpoint never has the name.

    An existing checkpoint of that name is replaced.

    Args:
        weights: see `write`.
        below: the folder that was given, if it is one above, in which no link is followed.

    Raises:
        KavaError: the disk is full or fails, or there is a link; an existing checkpoint is then as
            it was.
    """
    folder = Path(folder)
    if below is None:  # a folder that was given may be a link
        folder = folder.resolve()
    parts = folder.with_name(folder.name + ".partial")
    for place in (folder, parts):
        links.check(place, below)
    shutil.rmtree(parts, ignore_errors=True)
    try:
        with writing(folder):
            parts.mkdir(parents=True)
            write(reasoner, parts, weights)
    except BaseException:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    parts.rename(folder)


def write(
    reasoner: ReasonerProtocol, folder: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Write the files of a checkpoint into an existing folder.

    Args:
        weights: the reasoner's state, where it is split over processes (`kava.system.sharded`).
    """
    own = own_weights(reasoner)
    if weights is not None:
        own = {name: weights[name] for name in own}
    save_file(own, folder / "kava.safetensors")
    with no_bars():
        if reasoner.recipe.adapter == "lora":
            found = _below("backbone.", weights)
            reasoner.backbone.save_pretrained(folder / "adapter", state_dict=found)
            _tidy(folder / "adapter", reasoner.identity["name"])
        else:
            save_lm(reasoner, folder / "backbone", weights)
    reasoner.tokenizer.save_pretrained(folder)
    write_whole(folder / "recipe.yaml", schema.dump(reasoner.recipe))
    description = {
        "format": FORMAT,
        "method": reasoner.recipe.method,
        "adapter": reasoner.recipe.adapter,
        "merged": reasoner.merged,
        "backbone": reasoner.identity,
        "tokenizer_size": len(reasoner.tokenizer),
        "versions": versions(*_PACKAGES),
    }
    _describe_in(folder, description, reasoner.recipe, reasoner.record, folder)


def _tidy(adapter: Path, backbone: str) -> None:
    """Name the backbone as it is called anywhere, where peft names the folder it was read from."""
    (adapter / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
    file = adapter / "adapter_config.json"
    told = {**json.loads(file.read_text(encoding="utf-8")), "base_model_name_or_path": backbone}
    write_whole(file, json.dumps(told, indent=2) + "\n")


def save_lm(
    reasoner: ReasonerProtocol, folder: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Write the language model in transformers' format; `weights` as in `write`."""
    reasoner.lm.save_pretrained(folder, state_dict=_below("backbone.", weights))


def _below(prefix: str, weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    if weights is None:
        return None
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _describe_in(
    folder: Path,
    description: dict[str, Any],
    resolved: schema.Recipe,
    record: dict[str, Any] | None,
    below: Path,
) -> None:
    """`kava.json` and the model card; `record` is what was measured, as `result.json` has it.

    Raises:
        KavaError: the description or the record is not as kava writes it; there is a link.
    """
    try:
        text = card(resolved, description["backbone"], record, description.get("merged", False))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KavaError(
            f"{folder}: no model card can be written: what kava.json says of the backbone, or "
            f"result.json of the run, is not as kava writes it ({type(error).__name__}: {error})",
            code="reasoning.no-model-card",
            key=str(folder),
        ) from None
    write_whole(folder / "README.md", text, below)
    told = {**description, "record": record}
    write_whole(folder / "kava.json", json.dumps(told, indent=1) + "\n", below)


def remember(folder: Path, record: dict[str, Any]) -> None:
    """Put what was measured since into the description and card of a run's checkpoint."""
    _describe_in(folder, describe(folder), _recipe(folder), record, folder.parent)


_FILES = ["*.json", "*.safetensors", "recipe.yaml", "README.md", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Saved:
    """What a checkpoint folder says, before any weights are read.

    folder: with `kava.json`.
    identity: of the backbone that it was trained on.
    record: what was measured of it, as `result.json` has it; None before.
    merged: whether its weights are a backbone with an adapter folded in.
    """

    folder: Path
    recipe: schema.Recipe
    tokenizer: Any
    identity: dict[str, Any]
    record: dict[str, Any] | None
    merged: bool


def read(folder: str | Path, revision: str | None = None) -> Saved:
    """Read all of a checkpoint but its weights; see `Reasoner.from_pretrained`.

    Raises:
        KavaError: names the file and what does not fit.
    """
    folder = locate(folder, revision)
    described, resolved = describe(folder), _recipe(folder)
    tokenizer = loading.load_tokenizer(folder)
    if len(tokenizer) != described["tokenizer_size"]:
        raise KavaError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, "
            f"the checkpoint was saved with {described['tokenizer_size']}",
            code="reasoning.other-tokenizer",
            key=str(folder),
        )
    record, merged = described.get("record"), described.get("merged", False)
    return Saved(folder, resolved, tokenizer, described["backbone"], record, merged)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a run or a checkpoint of this package."""
    return any((place / "kava.json").is_file() for place in (folder, folder / "checkpoint"))


def locate(folder: str | Path, revision: str | None = None) -> Path:
    """The checkpoint of a path: itself, or `checkpoint` inside a run folder; or of a Hub name.

    Raises:
        KavaError: there is none.
    """
    try:
        folder = assets.find(folder)
    except KavaError:
        if not hub.is_name(str(folder)):
            raise
        instead = "give a folder, or go online and log in with `hf auth login`"
        folder = hub.download(str(folder), revision, _FILES, "checkpoint", instead)
    for candidate in (folder, folder / "checkpoint"):
        if (candidate / "kava.json").is_file():
            return candidate
    raise KavaError(
        f"{folder}: no kava.json here, so this is not a checkpoint of kava",
        code="reasoning.no-checkpoint",
        key=str(folder),
    )


def describe(folder: Path) -> dict[str, Any]:
    """`kava.json`, its format checked."""
    try:
        described = json.loads((folder / "kava.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KavaError(
            f"{folder / 'kava.json'}: cannot be read: {error}",
            code="reasoning.unreadable",
            key=str(folder / "kava.json"),
        ) from None
    found = described.get("format") if isinstance(described, dict) else None
    if found != FORMAT:
        raise KavaError(
            f"{folder / 'kava.json'}: format {found}, this version reads {FORMAT}",
            code="reasoning.other-format",
            key=str(folder / "kava.json"),
        )
    for key in ("backbone", "tokenizer_size"):
        if key not in described:
            raise KavaError(
                f"{folder / 'kava.json'}: key '{key}' is missing",
                code="reasoning.missing-key",
                key=key,
            )
    return described


def check_finite(reasoner: ReasonerProtocol, weights: dict[str, Tensor] | None, run: Path) -> None:
    """Refuse to save weights that a step has spoilt; a loss would show it at the next alone.

    Args:
        weights: as in `write`.

    Raises:
        KavaError: names the first weight that is not finite.
    """
    named = weights or {n: w for n, w in reasoner.named_parameters() if w.requires_grad}
    for name, weight in named.items():
        if not torch.isfinite(weight).all():
            raise KavaError(
                f"{run}: weight '{name}' is not finite after this step, so it is not saved: "
                "try a lower train.learning_rate or train.weight_decay",
                code="reasoning.weight-not-finite",
                key=name,
            )


def load_weights(reasoner: ReasonerProtocol, folder: str | Path) -> None:
    """Fill an existing reasoner from a checkpoint of the same shape, strictly."""
    folder = Path(folder)
    load_added(reasoner, folder)
    if reasoner.recipe.adapter == "full":
        model = loading.load_model(folder / "backbone", torch.float32)
        fill(dict(reasoner.lm.named_parameters()), dict(model.named_parameters()), str(folder))


def load_added(reasoner: ReasonerProtocol, folder: Path) -> None:
    """Fill what a reasoner has beside the backbone: an adapter, and `own_weights`."""
    file = folder / "kava.safetensors"
    fill(own_weights(reasoner), _read(file), str(file))
    if reasoner.recipe.adapter == "lora":
        file = folder / "adapter" / "adapter_model.safetensors"
        weights = _read(file)
        match(get_peft_model_state_dict(reasoner.backbone), weights, str(file))
        set_peft_model_state_dict(reasoner.backbone, weights)


def own_weights(reasoner: ReasonerProtocol) -> dict[str, Tensor]:
    """The rows of the new tokens, the projection and the method's own weights, by name."""
    return {
        f"{part}.{name}": weight.detach()
        for part in ("special_tokens", "projection", "method_modules")
        for name, weight in getattr(reasoner, part).state_dict().items()
    }


def match(expected: dict[str, Tensor], found: dict[str, Tensor], where: str) -> None:
    """Raise a KavaError that names the first weight that is missing, left over or misshapen."""
    for name, weight in expected.items():
        if name not in found:
            raise KavaError(
                f"{where}: weight '{name}' is missing", code="reasoning.weight-missing", key=name
            )
        if found[name].shape != weight.shape:
            raise KavaError(
                f"{where}: weight '{name}' has shape {tuple(found[name].shape)}, "
                f"this model needs {tuple(weight.shape)}",
                code="reasoning.weight-shape",
                key=name,
            )
    for name in found:
        if name not in expected:
            raise KavaError(
                f"{where}: weight '{name}' is not part of this model",
                code="reasoning.weight-unknown",
                key=name,
            )


@torch.no_grad()
def fill(target: dict[str, Tensor], source: dict[str, Tensor], where: str) -> None:
    """Copy every weight, after `match`."""
    match(target, source, where)
    for name, weight in target.items():
        weight.copy_(source[name])


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise KavaError(
            f"{file}: this file of the checkpoint is missing",
            code="reasoning.file-missing",
            key=str(file),
        )
    try:
        return load_file(file)
    except SafetensorError as error:
        raise KavaError(
            f"{file}: damaged: {error}", code="reasoning.damaged", key=str(file)
        ) from None


def _recipe(folder: Path) -> schema.Recipe:
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise KavaError(
            f"{file}: this file of the checkpoint is missing",
            code="reasoning.file-missing",
            key=str(file),
        )
    return load_resolved(file)
