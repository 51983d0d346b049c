"""Load a causal language model of transformers, and identify it by a fingerprint."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from kava.backbones import attention, compatibility, faults, gguf, headers, pretrained
from kava.backbones.encode import PROBES, encode
from kava.errors import KavaError, on_one_line, out_of_memory
from kava.recipe.schema import Recipe
from kava.system import assets, hub
from kava.system.hashes import sha256, sha256_of
from kava.system.progress import no_bars, no_warnings
from kava.types import ANSWER_PROMPT

ACCESS_HINT = (
    "go online, log in with `hf auth login`, accept the model's licence on its page, "
    "or pass backbone=/local/folder"
)


def load(
    name: str, revision: str | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """Load a backbone, its tokenizer and its identity from a folder, a GGUF file or the Hub.

    Weights must be in safetensors and remote code is never run. Missing or unexpected weights are
    an error.

    Raises:
        KavaError: the backbone is not available, or its weights do not fit its architecture.
    """
    folder, commit = locate(name, revision)
    model, tokenizer = load_model(folder, dtype), load_tokenizer(folder)
    return model, tokenizer, identity(model, portable_name(name, folder, commit), commit, folder)


def portable_name(name: str, folder: Path, commit: str | None) -> str:
    """Return a name that finds the backbone from any working directory."""
    return name if commit else assets.portable_name(folder)


def choose_dtype(recipe: Recipe, device: str | torch.device) -> torch.dtype:
    """Return the dtype of the backbone's weights by `train.precision`, adapter and device.

    By default this is bf16 for a frozen backbone on a GPU, and fp32 on the CPU. A backbone that is
    trained is always in fp32.
    """
    half = recipe.adapter != "full" and recipe.train.autocasts(torch.device(device).type)
    return torch.bfloat16 if half else torch.float32


def allow_tf32(recipe: Recipe, device: str | torch.device) -> None:
    """Let a GPU multiply fp32 weights in TF32 where a recipe trains all weights in mixed precision.

    TF32 rounds less than the bf16 of autocast. With `train.precision: fp32`, nothing changes.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and recipe.adapter == "full" and recipe.train.autocasts("cuda"):
        torch.set_float32_matmul_precision("high")


def read_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """Parse a dtype or its name, as transformers accepts them.

    Returns:
        The dtype, or None for "auto" and None, if `choose_dtype` should decide.

    Raises:
        KavaError: the dtype is not supported for a backbone.
    """
    if name is None or name == "auto":
        return None
    try:
        return _DTYPES[str(name).removeprefix("torch.")]
    except KeyError:
        raise KavaError(
            f"dtype {name!r} is not supported for a backbone; use 'bfloat16', 'float32' or 'auto'",
            code="backbones.bad-dtype",
            key="dtype",
        ) from None


#: Supported dtypes: those in which a backbone has the same `fingerprint`.
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the model's weights to another dtype in place, as if it had been loaded in it.

    Unlike `.to(dtype)`, this does not convert buffers. Rounded frequencies of the rotary embedding
    would rotate keys by wrong angles.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the folder of a backbone, and its commit if it is from the Hub.

    `name` is a folder, a folder that is shipped with the project, or else a name on the Hub, from
    which the backbone is downloaded if necessary.

    Raises:
        NotAvailable: there is no such folder, and the Hub does not provide it.
    """
    try:
        return assets.find(name), None
    except KavaError:
        if gguf.has_gguf_suffix(name) or not hub.is_name(name):
            raise hub.NotAvailable(
                f"backbone: {name}: no such folder; give a folder with config.json and "
                "model.safetensors, a GGUF file, a finished run of method cot, or a Hub name such "
                "as meta-llama/Llama-3.2-1B-Instruct",
                reason=f"{name}: no such folder",
                code="backbones.no-such-folder",
                key=name,
            ) from None
    folder = hub.download(name, revision, _FILES, "backbone", ACCESS_HINT)
    return folder, folder.name


_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model of a folder or a GGUF file without its tokenizer; see `load`.

    Raises:
        KavaError: the folder does not hold a model (`kava.backbones.faults`), the model cannot be
            loaded, or its weights do not fit its architecture.
    """
    faults.check(folder)
    try:
        if gguf.is_file(folder):
            gguf.check_layers(folder)
        stored = headers.read(folder)
        headers.check_layers(folder, stored)
        config = pretrained.load_config(folder)
        compatibility.check_config(config)
        if gguf.is_file(folder):
            gguf.check_size(folder, config)
        headers.check_shapes(folder, stored, config)
        for name, value in _OUTPUTS.items():
            setattr(config, name, value)
        with no_bars(), no_warnings():
            model, info = pretrained.load_model(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation="eager",  # which every family has; `prepare` sets ours
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that they are reported in `info`
                output_loading_info=True,
                **(gguf.weight_options() if gguf.is_file(folder) else {}),
            )
    except KavaError:
        raise
    except Exception as error:  # of transformers, of Python, or of libraries that it uses
        raise _loading_error(folder, error) from None
    # An exported folder has weights of kava beside those of the backbone, see OWN_PREFIX.
    info["unexpected_keys"] = {k for k in info["unexpected_keys"] if not k.startswith(OWN_PREFIX)}
    problems = {key: sorted(map(str, info[key])) for key in _LOADING_PROBLEMS if info.get(key)}
    if problems:
        raise faults.other_weights(folder, problems)
    if gguf.is_file(folder):
        gguf.check_complete(folder, model)
        model = _as_plain_model(model)
    return prepare(model)


def _as_plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the weights of a model that was read from a GGUF file into a plain model.

    transformers 5.23 does not save a model that it read from a GGUF file, even if dequantised.
    """
    config = model.config
    config.name_or_path = ""  # a title that the file gives itself; peft would ask the Hub for it
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    plain = pretrained.new_model(config, dtype=model.dtype, attn_implementation="eager")
    plain.load_state_dict(model.state_dict(), strict=True)
    return plain.eval()


#: Settings that a config.json may contain and that would change what a model returns.
_OUTPUTS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
#: Prefix of kava's own weights in the files of an exported backbone (`kava.reasoning.export`).
OWN_PREFIX = "kava."
_LOADING_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def load_tokenizer(folder: Path, saved: bool = False) -> Any:
    """Load the tokenizer; if it has no pad token, EOS is used (padding is always masked).

    Args:
        folder: a folder or a GGUF file.
        saved: see `pretrained.load_tokenizer`.

    Raises:
        KavaError: the tokenizer's files are missing, can only be read by code of the folder, or
            have a pattern that takes forever. For some families, transformers creates a tokenizer
            without a vocabulary if files are missing; every text would then become empty or the
            unknown token.
    """
    known, why, tokenizer = set(), "", None
    try:
        tokenizer = pretrained.load_tokenizer(folder, saved)
        ids = encode(tokenizer, [ANSWER_PROMPT, *PROBES])[0]
        known = set(ids) - {tokenizer.unk_token_id}
    except KavaError:
        raise
    except Exception as error:  # the tokenizers library raises a bare Exception for broken files
        why = f" ({_describe_error(error)})"
    if tokenizer is None or not known:
        raise KavaError(
            f"tokenizer of {folder}: its files are missing or not readable{why}; save them in the "
            "folder of config.json with tokenizer.save_pretrained(FOLDER)",
            code="backbones.no-tokenizer",
            key=str(folder),
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.name_or_path = str(folder)  # for a GGUF file, it was a temporary folder
    return tokenizer


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a loaded model: choose attention kernels, reset its generation config, and test it.

    Raises:
        KavaError: the backbone does not support external masks and positions
            (`kava.backbones.compatibility`).
    """
    # A published generation_config.json may contain penalties and sampling options, and a
    # config.json saved after a training may contain `use_cache: false`. `generate` would use them
    # as defaults: greedy answers would not be greedy, or would ignore the reasoning.
    attention.choose_kernels()
    ids = {name: getattr(model.config, name, None) for name in _TOKEN_IDS}
    model.generation_config = GenerationConfig(**ids)
    compatibility.check(model)
    return model


_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


_WEIGHTS = ("*.safetensors", "*.gguf")
#: Files whose SHA-256 is recorded: the weights, those of a checkpoint, and the tokenizer.
_RECORDED = (
    *_WEIGHTS, "adapter/*.safetensors", "backbone/*.safetensors", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "*.model",
)  # fmt: skip


def identity(
    model: PreTrainedModel, name: str, revision: str | None, folder: Path | None = None
) -> dict[str, Any]:
    """Return what a checkpoint stores about its backbone, so that a different one is detected.

    `files` has the SHA-256 of the files of weights and tokenizer in `folder`. Without `folder`, for
    a backbone that is not in files yet, and in checkpoints of earlier versions, there is only the
    fingerprint, which can be forged (see `fingerprint`).
    """
    config = model.config.get_text_config()
    if folder and gguf.is_file(folder):
        files = {f"model{gguf.SUFFIX}": sha256(folder)}  # whatever its name is
    else:
        files = sha256_of(folder, _RECORDED) if folder else {}
    return {
        "name": name,
        "revision": revision,
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "fingerprint": fingerprint(model),
        "files": files,
    }


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a sample of the weights, which is the same in fp32 and bf16.

    Only the first 256 values of each parameter are hashed, so it is no proof of identity. The
    SHA-256 of the files is, which `identity` records.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        sample = weight.detach().flatten()[:256].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def describe_difference(saved: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Describe the first property in which two identities differ, or return None if they agree.

    The files of weights are compared if both identities have them; those of the tokenizer are not,
    since a checkpoint has its own.
    """
    for key in ("model_type", "hidden_size", "num_layers", "vocab_size", "fingerprint"):
        if saved[key] != found[key]:
            return f"{key} is {found[key]}, but the checkpoint was trained with {saved[key]}"
    before, now = (_hashes(identity) for identity in (saved, found))
    if before and now and before != now:
        file = next(f for f in sorted(before | now) if before.get(f) != now.get(f))
        return (
            f"{file} has SHA-256 {now.get(file, 'none')}, but the checkpoint was trained with "
            f"{before.get(file, 'none')}"
        )
    return None


def _hashes(identity: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each recorded file of weights."""
    files = identity.get("files") or {}
    return {f: str(h) for f, h in files.items() if f.endswith((".safetensors", ".gguf"))}


def _loading_error(folder: Path, error: Exception) -> Exception:
    """Return the error to raise for a backbone that transformers cannot load.

    An out-of-memory error is returned unchanged.
    """
    if out_of_memory(error):
        return error
    message = f"backbone {folder}: {_describe_error(error)}"
    return KavaError(message, code="backbones.unusable", key=str(folder))


def _describe_error(error: Exception) -> str:
    line = on_one_line(error)
    known = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
    return line if known else f"{type(error).__name__}: {line}"
