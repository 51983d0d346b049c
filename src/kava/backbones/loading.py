"""Loading a Hugging Face causal language model, and knowing it again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from kava.backbones import compatibility, pretrained
from kava.backbones.attention import IMPLEMENTATION_NAME
from kava.errors import KavaError, out_of_memory
from kava.recipe.schema import Recipe
from kava.system import assets, hub
from kava.system.progress import no_bars
from kava.types import ANSWER_PROMPT

ACCESS_HINT = (
    "go online, log in with `hf auth login`, accept the model's licence on its page, "
    "or pass backbone=/local/folder"
)


def load(
    name: str, revision: str | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """A backbone, its tokenizer and its identity, from a folder or the Hub.

    Only safetensors, no remote code, nothing missing or left over.

    Raises:
        KavaError: cannot be had, or its weights do not fit its architecture.
    """
    folder, commit = locate(name, revision)
    model, tokenizer = load_model(folder, dtype), load_tokenizer(folder)
    return model, tokenizer, identity(model, portable_name(name, folder, commit), commit)


def portable_name(name: str, folder: Path, commit: str | None) -> str:
    """A name under which a backbone is found again from any working directory."""
    return name if commit else assets.portable_name(folder)


def choose_dtype(recipe: Recipe, device: str | torch.device) -> torch.dtype:
    """bf16 for a frozen backbone on an accelerator; fp32 on the CPU and where it is trained."""
    wanted = recipe.train.precision
    on_gpu = torch.device(device).type == "cuda"
    if recipe.adapter == "full" or wanted == "fp32" or (wanted == "auto" and not on_gpu):
        return torch.float32
    return torch.bfloat16


def read_dtype(given: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype or its name, as transformers takes them; None where `choose_dtype` is to decide.

    Raises:
        KavaError: none that a backbone can have here.
    """
    if given is None or given == "auto":
        return None
    try:
        return _DTYPES[str(given).removeprefix("torch.")]
    except KeyError:
        raise KavaError(
            f"dtype {given!r} is not possible for a backbone; give 'bfloat16', 'float32' or 'auto'",
            code="backbones.bad-dtype",
            key="dtype",
        ) from None


#: Those in which a backbone has the same `fingerprint`.
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in another dtype, as if loaded so.

    Unlike `.to(dtype)` it leaves buffers alone: rounded frequencies would turn keys wrongly.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a backbone, and its commit if it came from the Hub.

    A folder given as such or shipped with the project, else a Hub name, downloaded if need be.

    Raises:
        NotHad: there is no such folder, and the Hub does not give it.
    """
    try:
        return assets.find(name), None
    except KavaError:
        if not hub.is_name(name):
            raise hub.NotAvailable(
                f"backbone: {name}: no such folder; give a folder that holds config.json and "
                "model.safetensors, a finished run of cot, or a Hub name such as "
                "meta-llama/Llama-3.2-1B-Instruct",
                told=f"{name}: no such folder",
                code="backbones.no-such-folder",
                key=name,
            ) from None
    folder = hub.download(name, revision, _FILES, "backbone", ACCESS_HINT)
    return folder, folder.name


_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model alone; see `load`."""
    if (folder / "adapter_config.json").is_file():
        raise KavaError(
            f"backbone {folder}: there is an adapter of peft in it; merge it into its model "
            "(merge_and_unload), and give a folder that holds the result alone",
            code="backbones.is-adapter",
            key=str(folder),
        )
    try:
        config = pretrained.load_config(folder)
        compatibility.check_config(config)
        for name, value in _OUTPUTS.items():
            setattr(config, name, value)
        with no_bars():
            model, info = pretrained.load_model(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=IMPLEMENTATION_NAME,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that they are told
                output_loading_info=True,
            )
    except KavaError:
        raise
    except Exception as error:  # transformers' own, Python's, those of libraries that it asks for
        raise _unusable(folder, error) from None
    problems = {key: sorted(map(str, info[key])) for key in _LOADING_PROBLEMS if info.get(key)}
    if problems:
        raise KavaError(
            f"backbone {folder}: weights do not fit the architecture: {problems}",
            code="backbones.other-weights",
            key=str(folder),
        )
    return prepare(model)


#: What a config.json may ask a model to return besides, or in another form than is read here.
_OUTPUTS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
_LOADING_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer; a pad token is set to EOS where there is none (pads are always masked).

    Raises:
        KavaError: its files are not there. For some families transformers then makes one that knows
            no text: all that is asked would be nothing, or the unknown token. Or only code of the
            folder's own could read them.
    """
    known, why, tokenizer = set(), "", None
    try:
        tokenizer = pretrained.load_tokenizer(folder)
        ids = tokenizer(ANSWER_PROMPT, add_special_tokens=False).input_ids
        known = set(ids) - {tokenizer.unk_token_id}
    except KavaError:
        raise
    except Exception as error:  # of a broken file the tokenizers library raises just that
        why = f" ({_in_a_line(error)})"
    if tokenizer is None or not known:
        raise KavaError(
            f"tokenizer of {folder}: its files are missing or not readable{why}; put them beside "
            "config.json, as tokenizer.save_pretrained(FOLDER) does",
            code="backbones.no-tokenizer",
            key=str(folder),
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Route attention through the recorder, decode as asked, and try the model on a few tokens.

    Raises:
        KavaError: it is not a model that can think here (`kava.backbones.compatibility`).
    """
    # A published generation_config.json may hold penalties and sampling, a config.json saved after
    # a training `use_cache: false`; `generate` would take them over wherever a caller says nothing,
    # and greedy answers would not be greedy, or not know what was thought.
    ids = {name: getattr(model.config, name, None) for name in _TOKEN_IDS}
    model.generation_config = GenerationConfig(**ids)
    compatibility.check(model)
    return model


_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def identity(model: PreTrainedModel, name: str, revision: str | None) -> dict[str, Any]:
    """What a checkpoint remembers of its backbone."""
    config = model.config.get_text_config()
    return {
        "name": name,
        "revision": revision,
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "fingerprint": fingerprint(model),
    }


def fingerprint(model: nn.Module) -> str:
    """A hash of a sample of the weights, the same in fp32 and bf16."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        sample = weight.detach().flatten()[:256].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def describe_difference(saved: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The first property in which two identities differ, in words; None if they agree."""
    for key in ("model_type", "hidden_size", "num_layers", "vocab_size", "fingerprint"):
        if saved[key] != found[key]:
            return f"{key} is {found[key]}, the checkpoint was trained on {saved[key]}"
    return None


def _unusable(folder: Path, error: Exception) -> Exception:
    """What to raise for a backbone that transformers fails at."""
    if out_of_memory(error):
        return error
    message = f"backbone {folder}: {_in_a_line(error)}"
    return KavaError(message, code="backbones.unusable", key=str(folder))


def _in_a_line(error: Exception) -> str:
    line = " ".join(str(error).split())[:300]
    known = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
    return line if known else f"{type(error).__name__}: {line}"
