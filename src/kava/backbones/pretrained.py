"""Loaders of transformers, restricted to local files and without remote code.

A model's folder may name Python files of its own (`auto_map`). transformers runs them, or asks on
standard input whether to run them. Here they are never run, and there is no prompt. If transformers
has a class for the model, that class is used; if it has none, loading is an error.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from kava.backbones import gguf
from kava.backbones.encode import catching_panics
from kava.errors import KavaError
from kava.system.sharded import loading_everywhere

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
JSON_BYTES = 256 << 20  # of a JSON file; the largest published tokenizers have 35 MB


def load_config(path: Path) -> PreTrainedConfig:
    """Load the config of a model from a folder or a GGUF file.

    Raises:
        KavaError: the config can only be read by code in the folder, or a file is too large.
        OSError, ValueError: transformers cannot read the config.
    """
    check_sizes(path)
    with _refuse_remote_code(path, CONFIG), _source(path) as source:
        return AutoConfig.from_pretrained(**source, local_files_only=True, trust_remote_code=False)


def load_model(path: Path, **options: Any) -> Any:
    """Load a model with `AutoModelForCausalLM.from_pretrained`.

    Raises the errors of `load_config` and of that function.
    """
    with _refuse_remote_code(path, CONFIG), _source(path) as source, loading_everywhere():
        return AutoModelForCausalLM.from_pretrained(
            **source, local_files_only=True, trust_remote_code=False, **options
        )


def load_tokenizer(path: Path, saved: bool = False) -> Any:
    """Load a tokenizer with `AutoTokenizer.from_pretrained`.

    Args:
        path: a folder or a GGUF file.
        saved: whether `save_pretrained` wrote the folder, so that the class that it names is right.
            By default, transformers prefers the class of the model's family for some families.

    Raises the errors of `load_config` and of that function.
    """
    check_sizes(path)
    options = {"config": PreTrainedConfig()} if saved else {}
    with _refuse_remote_code(path, TOKENIZER, CONFIG), _source(path) as source:
        return AutoTokenizer.from_pretrained(
            **source, **options, local_files_only=True, trust_remote_code=False
        )


def _source(place: Path) -> AbstractContextManager[dict[str, Any]]:
    """Return the arguments of `from_pretrained` that name a folder or a GGUF file."""
    if gguf.is_file(place):
        return gguf.single_file_options(place)
    return nullcontext({"pretrained_model_name_or_path": place})


def new_model(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Create a model with random weights with `AutoModelForCausalLM.from_config`.

    Raises the errors of `load_config`.
    """
    with _refuse_remote_code(Path(config.name_or_path or ""), CONFIG):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def check_sizes(folder: Path) -> None:
    """Check that no JSON file of a model is too large to be read.

    Raises:
        KavaError: one is; its key is the file.
    """
    for file in sorted(folder.glob("*.json")):
        if file.stat().st_size > JSON_BYTES:
            raise KavaError(
                f"{file}: {file.stat().st_size:,} bytes; a JSON file of a model has at most "
                f"{JSON_BYTES:,}",
                code="backbones.file-too-large",
                key=str(file),
            )


@contextmanager
def _refuse_remote_code(folder: Path, *files: str) -> Iterator[None]:
    """Convert the error of transformers about remote code to a KavaError of one line.

    A panic of the tokenizers or safetensors library becomes an `Exception`.

    Args:
        folder: the model's folder.
        files: files that may request remote code; the error names the first one that does.

    Raises:
        KavaError: the model requires remote code.
    """
    try:
        with catching_panics():
            yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        asking = [folder / file for file in files if _requests_code(folder / file)]
        raise KavaError(
            f"{asking[0] if asking else folder}: requires custom code (auto_map), and kava does "
            "not run code from a model's folder; use a model that transformers supports",
            code="backbones.remote-code",
            key=str(asking[0] if asking else folder),
        ) from None


def _requests_code(file: Path) -> bool:
    """Whether a JSON file requests remote code (`auto_map`)."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(found.get("auto_map"))
