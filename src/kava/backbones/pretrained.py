"""The loaders of transformers, as kava calls them: from files that are here, without their code.

A model's folder may name Python files of its own (`auto_map`), which transformers runs, or asks on
standard input whether to run. Here they are never run and nobody is asked. Where transformers has a
class of its own for the model, that class is taken; where it has none, loading is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from kava.errors import KavaError

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model's folder.

    Raises:
        KavaError: only code of the folder's own could read it.
        OSError, ValueError: transformers cannot read it either.
    """
    with _without_code(folder, CONFIG):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(folder: Path, **options: Any) -> Any:
    """As `AutoModelForCausalLM.from_pretrained`; raises as `load_config`, and what that raises."""
    with _without_code(folder, CONFIG):
        return AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )


def load_tokenizer(folder: Path) -> Any:
    """As `AutoTokenizer.from_pretrained`; raises as `load_config`, and what that raises."""
    with _without_code(folder, TOKENIZER, CONFIG):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def new_model(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A model of random weights, as `AutoModelForCausalLM.from_config`; raises as `load_config`."""
    with _without_code(Path(config.name_or_path or ""), CONFIG):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


@contextmanager
def _without_code(folder: Path, *files: str) -> Iterator[None]:
    """Turn transformers' refusal to run a folder's code into one line.

    Args:
        files: that may ask for it; the first that does is named.

    Raises:
        KavaError: names the file.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        asking = [folder / file for file in files if _asks(folder / file)]
        raise KavaError(
            f"{asking[0] if asking else folder}: asks for code of its own (auto_map), and kava "
            "runs no code of a model's folder; give a model that transformers has a class for",
            code="backbones.remote-code",
            key=str(asking[0] if asking else folder),
        ) from None


def _asks(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(found.get("auto_map"))
