"""Compare a model's config with the headers of its safetensors files, before a model is built.

A config is a few lines, and can ask for any number of layers or tokens; transformers would create
them, with random weights where the files have none, before it reports that they do not fit. The
headers say what is really there. The safetensors library checks that they agree with the size of
their files.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from kava.backbones import pretrained
from kava.errors import KavaError, truncate

LAYERS = 1000  # of any model; building a layer takes milliseconds
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
#: How configs of transformers call the number of layers.
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_PACKED = 8  # weights in one number of the file, with a quantization of 4 bits


class TensorHeader(NamedTuple):
    """A tensor of a safetensors file, without its values."""

    file: Path
    shape: tuple[int, ...]


def read(folder: Path) -> dict[str, TensorHeader]:
    """Read the names and shapes of a model's tensors; empty without safetensors files.

    Raises:
        KavaError: the index is too large, not valid, or names a file outside of the folder.
        OSError, SafetensorError: a file cannot be read or is damaged.
    """
    if (folder / WEIGHTS_FILE).is_file():
        files = [folder / WEIGHTS_FILE]
    elif (folder / INDEX_FILE).is_file():
        files = _shards(folder / INDEX_FILE)
    else:
        return {}
    found: dict[str, TensorHeader] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                found[name] = TensorHeader(file, tuple(tensors.get_slice(name).get_shape()))
    return found


def check_layers(folder: Path, stored: Mapping[str, TensorHeader]) -> None:
    """Check the number of layers before transformers reads the config and allocates lists for them.

    Raises:
        KavaError: config.json asks for more layers than the files have, or than any model.
    """
    pretrained.check_sizes(folder)
    layers = _layers(stored) if stored else LAYERS
    for key, value in _whole_numbers(_config(folder)):
        if key not in _LAYER_KEYS or value <= min(layers, LAYERS):
            continue
        there = (
            f"the weights in {next(iter(stored.values())).file.name} have {layers:,}"
            if layers < min(value, LAYERS)
            else f"kava loads at most {LAYERS:,}"
        )
        raise _config_error(folder, key, f"{value:,}", f"{there} layers")


def check_shapes(
    folder: Path, stored: Mapping[str, TensorHeader], config: PreTrainedConfig
) -> None:
    """Check that the tensors of a model with this config have the shapes of those in the files.

    The model is built without memory for its weights, after `check_layers`. Names that transformers
    converts while loading are not compared one by one; all together may not be more than twice the
    size of what the files have (eight times, if the config says that they are quantized).

    Raises:
        KavaError: a shape differs, the head is neither stored nor tied to the embeddings, or the
            model is too large for its files.
    """
    if not stored:
        return
    with torch.device("meta"):
        model = pretrained.new_model(config)
    prefix = f"{model.base_model_prefix}."
    raw = _config(folder)
    for name, weight in model.state_dict().items():
        there = stored.get(name) or stored.get(name.removeprefix(prefix))
        if there is not None and there.shape != tuple(weight.shape):
            raise _shape_error(folder, raw, name, tuple(weight.shape), there)
    head = model.get_output_embeddings()
    if head is not None and not config.tie_word_embeddings:
        # Embeddings and head have the same shape, so the files must have two such tensors.
        shape = tuple(head.weight.shape)
        if sum(tensor.shape == shape for tensor in stored.values()) < 2:
            finding = f"the weights have no head of shape {shape} beside the embeddings"
            raise _config_error(folder, "tie_word_embeddings", "false", finding)
    wanted = sum(weight.numel() for weight in model.parameters())
    have = sum(math.prod(tensor.shape) for tensor in stored.values())
    if wanted > have * (_PACKED if raw.get("quantization_config") else 2):
        raise KavaError(
            f"{folder / pretrained.CONFIG}: describes a model of {wanted:,} weights, but the files "
            f"have {have:,}; use the config that belongs to the weights",
            code="backbones.config-mismatch",
            key=str(folder / pretrained.CONFIG),
        )


def _layers(stored: Mapping[str, TensorHeader]) -> int:
    """Return the number of layers, from the layer index in the names of the tensors."""
    numbers = (re.search(r"\.(\d{1,9})\.", name) for name in stored)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def weight_map(index: Path) -> Mapping[str, str]:
    """Return the names of all weights in an index of shards, with the file name of their shard.

    Raises:
        KavaError: the file is too large, or is no such index.
    """
    pretrained.check_sizes(index.parent)
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(word, str) for pair in found.items() for word in pair):
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise KavaError(
        f"{index}: is not an index of shards (an object with 'weight_map'); copy it again",
        code="backbones.bad-shard-index",
        key=str(index),
    )


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file of the same folder, rather than a path."""
    plain = os.path.basename(name) == name and name not in ("", ".", "..")
    return plain and "\0" not in name and len(name) < 256


def _shards(index: Path) -> list[Path]:
    names = sorted(set(weight_map(index).values()))
    if outside := [name for name in names if not is_file_name(name)]:
        raise KavaError(
            f"{index}: names the file '{truncate(outside[0])}', which is not in its folder; copy "
            "the model again",
            code="backbones.bad-index",
            key=str(index),
        )
    return [index.parent / name for name in names]


def _config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json; empty if it is not valid, which `load_config` reports."""
    try:
        found = json.loads((folder / pretrained.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole_numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield all keys of a config whose values are whole numbers, with these, nested configs too."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _whole_numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value


def _shape_error(
    folder: Path, raw: Mapping[str, Any], name: str, shape: tuple[int, ...], there: TensorHeader
) -> KavaError:
    """Return the error for a tensor of another shape; it names the config key with that size."""
    pairs = zip(shape, there.shape, strict=False)
    number = next((asked for asked, found in pairs if asked != found), None)
    key = next((key for key, value in _whole_numbers(raw) if value == number), None)
    finding = f"'{name}' in {there.file.name} has shape {there.shape}, not {shape}"
    return _config_error(
        folder, key or name, "of another size" if key is None else f"{number:,}", finding
    )


def _config_error(folder: Path, key: str, value: str, finding: str) -> KavaError:
    return KavaError(
        f"{folder / pretrained.CONFIG}: {truncate(key)} is {value}, but {finding}; use the "
        "config that belongs to the weights",
        code="backbones.config-mismatch",
        key=key,
    )
