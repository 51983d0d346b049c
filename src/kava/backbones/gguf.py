"""Read a GGUF file, the format of llama.cpp, as a backbone (the extra `gguf`).

The weights are dequantised: whatever follows, training and merging included, is that of a plain
model of transformers, which has rounded weights.
"""

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from kava.errors import KavaError, install

SUFFIX = ".gguf"


def has_gguf_suffix(name: str | Path) -> bool:
    """Whether a name is that of a GGUF file, by its ending."""
    return str(name).lower().endswith(SUFFIX)


def is_file(path: Path) -> bool:
    """Whether a path is that of a GGUF file that exists."""
    return has_gguf_suffix(path) and path.is_file()


def check_installed(file: Path) -> None:
    """Raise a KavaError if the package gguf is not installed."""
    if find_spec("gguf") is None:
        raise KavaError(
            f"{file}: a GGUF file is read with the package gguf; {install('gguf')}",
            code="backbones.gguf-not-installed",
            key=str(file),
        )


@contextmanager
def single_file_options(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the arguments with which `from_pretrained` reads nothing but this file.

    transformers also reads tokenizer_config.json, tokenizer.json and adapter_config.json beside a
    GGUF file. In a folder of downloads these may be another model's, so the file is linked into a
    folder of its own.

    Raises:
        KavaError: the package gguf is not installed.
    """
    check_installed(file)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"model{SUFFIX}").symlink_to(file.resolve())
        # The bar of dequantisation is drawn by tqdm itself, whatever transformers was told.
        with contextlib.redirect_stderr(io.StringIO()):
            yield {"pretrained_model_name_or_path": folder, "gguf_file": f"model{SUFFIX}"}


def weight_options() -> dict[str, Any]:
    """Return options of `from_pretrained` for dequantised weights.

    Since transformers 5.23, some architectures would otherwise keep them in blocks where a kernel
    is installed.
    """
    packed = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": packed(dequantize=True)} if packed else {}


def check_size(file: Path, config: PreTrainedConfig) -> None:
    """Check that the embedding table of a config is not larger than all tensors of its file.

    transformers would otherwise allocate the missing rows with random weights, whatever their size.

    Raises:
        KavaError: the table is larger.
    """
    text = config.get_text_config()
    if text.vocab_size * text.hidden_size > sum(_sizes(file).values()):
        raise _size_error(file, "vocab_size", text.vocab_size)


def check_layers(file: Path) -> None:
    """Check the number of layers before transformers reads the metadata and allocates the layers.

    Raises:
        KavaError: the metadata state more layers than the file has, or the package gguf is not
            installed.
    """
    check_installed(file)
    from gguf import GGUFReader

    reader = GGUFReader(file)
    there = {tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name[:4] == "blk."}
    for name, field in reader.fields.items():
        if name.endswith(".block_count") and int(field.contents()) > len(there):
            raise _size_error(file, "block_count", int(field.contents()))


def _size_error(file: Path, key: str, value: int) -> KavaError:
    return KavaError(
        f"{file}: {key} is {value:,} in the metadata, but the file has tensors for fewer; use "
        "another file",
        code="backbones.config-mismatch",
        key=key,
    )


def _sizes(file: Path) -> dict[str, int]:
    """Return the number of weights of each tensor of a file."""
    from gguf import GGUFReader

    return {tensor.name: math.prod(map(int, tensor.shape)) for tensor in GGUFReader(file).tensors}


def check_complete(file: Path, model: PreTrainedModel) -> None:
    """Check that a model has as many weights as its file.

    transformers leaves out tensors that it does not know. `rope_freqs.weight` is one of them:
    without it, a Llama 3.1 or 3.2 would rotate its keys by other angles than it was trained with.

    Raises:
        KavaError: the file has more weights, or fewer.
    """
    tensors = _sizes(file)
    there, read = sum(tensors.values()), model.num_parameters()
    if there != read:
        rotary = [name for name in tensors if name.startswith("rope_")]
        which = f", among them {rotary[0]}" if rotary else ""
        raise KavaError(
            f"{file}: transformers reads only {read:,} of the file's {there:,} weights{which}; "
            "use the safetensors model from which the file was made",
            code="backbones.gguf-not-whole",
            key=str(file),
        )
