"""Write a backbone as a GGUF file for llama.cpp (the extra `gguf`).

The file has the weights and no tokens: prompts are embeddings, and the folder's tokenizer reads
what is generated.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kava.backbones.attention import head_sizes
from kava.backbones.gguf import check_installed
from kava.errors import KavaError

#: `model_type` of the backbones that can be written; the names are llama.cpp's too.
FAMILIES = ("llama", "qwen2", "qwen3")


def check(model: PreTrainedModel, file: Path) -> None:
    """Check that a backbone can be written.

    Raises:
        KavaError: the package gguf is not installed, the family is not supported, or the backbone
            has sliding windows.
    """
    check_installed(file)
    config: Any = model.config
    if config.model_type not in FAMILIES:
        raise KavaError(
            f"{file}: a backbone of the family {config.model_type} cannot be written as GGUF; "
            f"possible are {', '.join(FAMILIES)}",
            code="backbones.gguf-family",
            key=config.model_type,
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise KavaError(
            f"{file}: a backbone with sliding windows cannot be written as GGUF",
            code="backbones.gguf-window",
            key=config.model_type,
        )


def write(model: PreTrainedModel, file: Path) -> None:
    """Write the weights of a language model in their dtype.

    Raises:
        KavaError: see `check`.
    """
    check(model, file)
    import gguf

    config: Any = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(file, family)
    _describe(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if family == "llama" and ".q_proj." in name:
            weight = _interleaved(weight, config.num_attention_heads)
        if family == "llama" and ".k_proj." in name:
            weight = _interleaved(weight, config.num_key_value_heads)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise KavaError(
                f"{file}: GGUF has no name for the weight '{name}' of a {family} backbone",
                code="backbones.gguf-weight",
                key=name,
            )
        _add(writer, stored, weight)
    rope = config.rope_parameters["rope_type"]
    if rope != "default":
        _add(writer, "rope_freqs.weight", _frequency_factors(config, rope))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: Any) -> None:
    """Add the shape of the model."""
    heads, shared, size = head_sizes(config)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add(writer: Any, name: str, weight: Tensor) -> None:
    """Add a tensor; vectors are in fp32, since llama.cpp computes with them in fp32."""
    import gguf

    array = weight.detach().float().cpu().numpy()
    if weight.ndim > 1 and weight.dtype != torch.float32:
        kind = gguf.GGMLQuantizationType["F16" if weight.dtype == torch.float16 else "BF16"]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, array)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Return rows of queries or keys in llama.cpp's order for Llama.

    It rotates neighbouring rows of a head; transformers rotates row i and row i + head size / 2.
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _frequency_factors(config: Any, rope: str) -> Tensor:
    """Return by what each rotary frequency is divided, [head size / 2]."""
    scaled, _ = ROPE_INIT_FUNCTIONS[rope](config, torch.device("cpu"))
    exponents = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    return config.rope_parameters["rope_theta"] ** -exponents / scaled
