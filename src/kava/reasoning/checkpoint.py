"""Checkpoint folders: saved atomically, loaded strictly, with weights in safetensors only.

kava.json           format, method, backbone identity, tokenizer size, versions
README.md           the model card
recipe.yaml         the resolved recipe
kava.safetensors    embeddings of the three special tokens, the projection, the method's own weights
adapter/            in the format of peft           (adapter: lora)
backbone/           in the format of transformers   (adapter: full)
tokenizer.json ...  the tokenizer with the three special tokens

An exported folder (`kava.reasoning.export`) differs in that the backbone's files are in the folder
itself, and the weights of kava.safetensors are in those files, as `kava.*`.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kava.backbones import loading
from kava.errors import KavaError
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.model_card import card
from kava.reasoning.resolve import load_resolved
from kava.recipe import schema
from kava.system import assets, hub, links
from kava.system.environment import versions
from kava.system.files import explain_disk_errors, write_whole
from kava.system.progress import no_bars

FORMAT = 1
_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def save(
    reasoner: ReasonerBase,
    folder: str | Path,
    weights: dict[str, Tensor] | None = None,
    below: Path | None = None,
) -> None:
    """Save a checkpoint atomically, replacing an existing one.

    The files are written to a temporary folder next to it, which is renamed at the end. A partially
    written checkpoint therefore never has the final name.

    Args:
        reasoner: what to save.
        folder: the checkpoint folder.
        weights: see `write`.
        below: the folder given by the user, if `folder` is inside it; no symbolic links are
            followed within it.

    Raises:
        KavaError: the disk is full or fails, or a path is a link; an existing checkpoint is then
            unchanged.
    """
    folder = Path(folder)
    if below is None:  # a folder given by the user may be a link
        folder = folder.resolve()
    parts = folder.with_name(folder.name + ".partial")
    for place in (folder, parts):
        links.check(place, below)
    shutil.rmtree(parts, ignore_errors=True)
    try:
        with explain_disk_errors(folder):
            parts.mkdir(parents=True)
            write(reasoner, parts, weights)
    except BaseException:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    parts.rename(folder)


def write(reasoner: ReasonerBase, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the files of a checkpoint into an existing folder.

    Args:
        reasoner: what to save.
        folder: the existing folder.
        weights: the full state of the reasoner, if it is sharded over ranks
            (`kava.system.sharded`).
    """
    own = own_weights(reasoner)
    if weights is not None:
        own = {name: weights[name] for name in own}
    save_file(own, folder / "kava.safetensors")
    with no_bars():
        if reasoner.recipe.adapter == "lora":
            found = _without_prefix("backbone.", weights)
            reasoner.backbone.save_pretrained(folder / "adapter", state_dict=found)
            _tidy(folder / "adapter", reasoner.identity["name"])
        else:
            save_lm(reasoner, folder / "backbone", weights)
    write_description(reasoner, folder)


def write_description(reasoner: ReasonerBase, folder: Path, exported: bool = False) -> None:
    """Write everything of a checkpoint but the weights.

    Args:
        exported: whether the folder is one of `kava.reasoning.export`.
    """
    reasoner.tokenizer.save_pretrained(folder)
    write_whole(folder / "recipe.yaml", schema.dump(reasoner.recipe))
    description = {
        "format": FORMAT,
        "method": reasoner.recipe.method,
        "adapter": reasoner.recipe.adapter,
        "merged": reasoner.merged,
        **({"exported": True} if exported else {}),
        "backbone": reasoner.identity,
        "tokenizer_size": len(reasoner.tokenizer),
        "versions": versions(*_PACKAGES),
    }
    _describe_in(folder, description, reasoner.recipe, reasoner.record, folder)


def _tidy(adapter: Path, backbone: str) -> None:
    """Set the backbone's portable name in the adapter's config.

    peft records the local folder from which the backbone was loaded instead.
    """
    (adapter / "README.md").unlink(missing_ok=True)  # peft's model card template, never filled in
    file = adapter / "adapter_config.json"
    adapter_config = {
        **json.loads(file.read_text(encoding="utf-8")),
        "base_model_name_or_path": backbone,
    }
    write_whole(file, json.dumps(adapter_config, indent=2) + "\n")


def save_lm(reasoner: ReasonerBase, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Save the language model in the format of transformers; for `weights` see `write`."""
    reasoner.lm.save_pretrained(folder, state_dict=_without_prefix("backbone.", weights))


def _without_prefix(prefix: str, weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return the weights whose names begin with `prefix`, by their names without it."""
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
    """Write `kava.json` and the model card.

    Args:
        folder: the checkpoint folder.
        description: the content of `kava.json`, without the record.
        resolved: the resolved recipe.
        record: measured results, as in `result.json`.
        below: a folder within which no symbolic links are followed.

    Raises:
        KavaError: the description or the record is not in the format of kava, or a path is a link.
    """
    try:
        text = card(resolved, description["backbone"], record, description.get("merged", False))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KavaError(
            f"{folder}: cannot write the model card: the backbone in kava.json, or the "
            f"result.json of the run, does not have the expected format ({type(error).__name__}: "
            f"{error})",
            code="reasoning.no-model-card",
            key=str(folder),
        ) from None
    write_whole(folder / "README.md", text, below)
    document = {**description, "record": record}
    write_whole(folder / "kava.json", json.dumps(document, indent=1) + "\n", below)


def add_results(folder: Path, record: dict[str, Any]) -> None:
    """Update `kava.json` and the model card of a run's checkpoint with new measured results."""
    _describe_in(folder, describe(folder), _recipe(folder), record, folder.parent)


_FILES = ["*.json", "*.safetensors", "recipe.yaml", "README.md", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class CheckpointContent:
    """Content of a checkpoint folder except for the weights.

    Args:
        folder: the folder that contains `kava.json`.
        recipe: the resolved recipe.
        tokenizer: the tokenizer with the three special tokens.
        identity: identity of the backbone that the checkpoint was trained on.
        record: measured results, as in `result.json`; None if there are none yet.
        merged: whether the weights are a backbone with a merged adapter.
        exported: whether the folder is one of `kava.reasoning.export`.
        commit: the commit on the Hub, if the checkpoint is from there.
    """

    folder: Path
    recipe: schema.Recipe
    tokenizer: Any
    identity: dict[str, Any]
    record: dict[str, Any] | None
    merged: bool
    exported: bool
    commit: str | None = None

    @property
    def backbone(self) -> Path:
        """The folder of the backbone, if the checkpoint contains one."""
        return self.folder if self.exported else self.folder / "backbone"


def read(folder: str | Path, revision: str | None = None) -> CheckpointContent:
    """Read everything of a checkpoint except its weights; see `Reasoner.from_pretrained`.

    Raises:
        KavaError: the checkpoint is not valid; the error names the file and the mismatch.
    """
    folder, commit = locate_commit(folder, revision)
    described, resolved = describe(folder), _recipe(folder)
    tokenizer = loading.load_tokenizer(folder, saved=True)
    if len(tokenizer) != described["tokenizer_size"]:
        raise KavaError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, "
            f"the checkpoint was saved with {described['tokenizer_size']}",
            code="reasoning.other-tokenizer",
            key=str(folder),
        )
    return CheckpointContent(
        folder,
        resolved,
        tokenizer,
        described["backbone"],
        record=described.get("record"),
        merged=described.get("merged", False),
        exported=described.get("exported", False) is True,
        commit=commit,
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a run or a checkpoint of kava."""
    return any((place / "kava.json").is_file() for place in (folder, folder / "checkpoint"))


def locate(folder: str | Path, revision: str | None = None) -> Path:
    """Return the checkpoint folder of a path or of a Hub name; see `locate_commit`."""
    return locate_commit(folder, revision)[0]


def locate_commit(folder: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """Return the checkpoint folder of a path or Hub name, and its commit if it is from the Hub.

    This is the folder itself, or `checkpoint` inside a run folder. A checkpoint on the Hub is
    downloaded if necessary.

    Raises:
        KavaError: there is no checkpoint.
    """
    commit = None
    try:
        folder = assets.find(folder)
    except KavaError:
        if not hub.is_name(str(folder)):
            raise
        instead = "give a folder, or go online and log in with `hf auth login`"
        folder = hub.download(str(folder), revision, _FILES, "checkpoint", instead)
        commit = folder.name
    for candidate in (folder, folder / "checkpoint"):
        if (candidate / "kava.json").is_file():
            return candidate, commit
    raise KavaError(
        f"{folder}: kava.json was not found, so this is not a checkpoint of kava",
        code="reasoning.no-checkpoint",
        key=str(folder),
    )


def describe(folder: Path) -> dict[str, Any]:
    """Read `kava.json` and check its format.

    Raises:
        KavaError: the file cannot be read, has another format, or lacks a key.
    """
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
            f"{folder / 'kava.json'}: format {found} is not supported; this version reads format "
            f"{FORMAT}",
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


def check_finite(reasoner: ReasonerBase, weights: dict[str, Tensor] | None, run: Path) -> None:
    """Check that all trained weights are finite before they are saved.

    The loss would only show it in the next step.

    Args:
        weights: see `write`.
        run: the run folder, for the error message.

    Raises:
        KavaError: a weight is not finite; the error names the first one.
    """
    named = weights or {n: w for n, w in reasoner.named_parameters() if w.requires_grad}
    for name, weight in named.items():
        if not torch.isfinite(weight).all():
            raise KavaError(
                f"{run}: weight '{name}' is not finite after this step, so no checkpoint is "
                "saved; try a lower train.learning_rate or train.weight_decay",
                code="reasoning.weight-not-finite",
                key=name,
            )


def load_weights(reasoner: ReasonerBase, folder: str | Path) -> None:
    """Load the weights of a checkpoint into an existing reasoner of the same shape, strictly."""
    folder = Path(folder)
    load_added(reasoner, folder)
    if reasoner.recipe.adapter == "full":
        model = loading.load_model(folder / "backbone", torch.float32)
        fill(dict(reasoner.lm.named_parameters()), dict(model.named_parameters()), str(folder))


def load_added(reasoner: ReasonerBase, folder: Path, exported: bool = False) -> None:
    """Load the weights that a reasoner adds to its backbone: the adapter and `own_weights`.

    Args:
        exported: whether the folder is one of `kava.reasoning.export`.
    """
    file = folder / "kava.safetensors"
    own = _read_exported(folder) if exported else _read(file)
    if not reasoner.training_modules:  # a checkpoint of a training, opened for something else
        own = {k: v for k, v in own.items() if not k.startswith("training_modules.")}
    fill(own_weights(reasoner), own, str(folder if exported else file))
    if reasoner.recipe.adapter == "lora":
        file = folder / "adapter" / "adapter_model.safetensors"
        weights = _read(file)
        match(get_peft_model_state_dict(reasoner.backbone), weights, str(file))
        set_peft_model_state_dict(reasoner.backbone, weights)


def own_weights(reasoner: ReasonerBase) -> dict[str, Tensor]:
    """Return the special-token embeddings, the projection and the method's own weights by name.

    During a training, these include the weights that only the loss needs.
    """
    return {
        f"{part}.{name}": weight.detach()
        for part in ("special_tokens", "projection", "method_modules", "training_modules")
        for name, weight in getattr(reasoner, part).state_dict().items()
    }


def match(expected: dict[str, Tensor], actual: dict[str, Tensor], where: str) -> None:
    """Check that two sets of weights have the same names and shapes.

    Raises:
        KavaError: a weight is missing, unexpected or has another shape; the error names the first.
    """
    for name, weight in expected.items():
        if name not in actual:
            raise KavaError(
                f"{where}: weight '{name}' is missing", code="reasoning.weight-missing", key=name
            )
        if actual[name].shape != weight.shape:
            raise KavaError(
                f"{where}: weight '{name}' has shape {tuple(actual[name].shape)}, "
                f"this model needs {tuple(weight.shape)}",
                code="reasoning.weight-shape",
                key=name,
            )
    for name in actual:
        if name not in expected:
            raise KavaError(
                f"{where}: weight '{name}' is not part of this model",
                code="reasoning.weight-unknown",
                key=name,
            )


@torch.no_grad()
def fill(target: dict[str, Tensor], source: dict[str, Tensor], where: str) -> None:
    """Copy all weights from `source` to `target`, after checking them with `match`."""
    match(target, source, where)
    for name, weight in target.items():
        weight.copy_(source[name])


def _read(file: Path) -> dict[str, Tensor]:
    """Read the weights of a safetensors file.

    Raises:
        KavaError: the file is missing or corrupt.
    """
    if not file.is_file():
        raise KavaError(
            f"{file}: this file of the checkpoint is missing",
            code="reasoning.file-missing",
            key=str(file),
        )
    with _explain_damage(file):
        return load_file(file)


def _read_exported(folder: Path) -> dict[str, Tensor]:
    """Read kava's own weights from the safetensors files of an exported folder.

    Raises:
        KavaError: a file is corrupt.
    """
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with _explain_damage(file), safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith(loading.OWN_PREFIX)]  # noqa: SIM118
            weights |= {n.removeprefix(loading.OWN_PREFIX): opened.get_tensor(n) for n in names}
    return weights


@contextmanager
def _explain_damage(file: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise KavaError(
            f"{file}: damaged: {error}", code="reasoning.damaged", key=str(file)
        ) from None


def _recipe(folder: Path) -> schema.Recipe:
    """Read the resolved recipe of a checkpoint.

    Raises:
        KavaError: the file is missing or not valid.
    """
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise KavaError(
            f"{file}: this file of the checkpoint is missing",
            code="reasoning.file-missing",
            key=str(file),
        )
    return load_resolved(file, saved=True)
