"""Check that a backbone supports external masks and positions, on a few tokens when it is loaded.

Latent reasoning continues a KV cache that has holes, with masks and positions computed by kava. A
model that ignores one of them, or that keeps its past elsewhere than in keys and values, would
train and answer without an error, and be wrong. There is therefore no list of supported families;
each model is tested.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from kava.backbones import masks, structure
from kava.backbones.attention import IMPLEMENTATION_NAME, QueryRecord, record_queries
from kava.backbones.masked_cache import MaskedCache
from kava.errors import KavaError, first_line
from kava.system.progress import no_warnings

TOKENS = 6
#: Largest allowed root-mean-square difference of the same logits computed in two ways, relative to
#: their standard deviation.
TOLERANCE = 1e-3
_HALF = (torch.bfloat16, torch.float16)


def check_config(config: PreTrainedConfig) -> None:
    """Check, before weights are read, that a config is that of a plain causal language model.

    Raises:
        KavaError: it is an encoder-decoder model, more than a language model, or quantised.
    """
    what = f"backbone of type {config.model_type}"
    if config.is_encoder_decoder:
        raise KavaError(
            f"{what}: encoder-decoder models are not supported; use a decoder-only language model",
            code="backbones.encoder-decoder",
            key=config.model_type,
        )
    if config.get_text_config() is not config:
        raise KavaError(
            f"{what}: multimodal models are not supported; use only the text model",
            code="backbones.more-than-text",
            key=config.model_type,
        )
    if quantised := getattr(config, "quantization_config", None):
        named = quantised if isinstance(quantised, dict) else vars(quantised)
        method = str(named.get("quant_method", "unknown method"))
        raise KavaError(
            f"{what}: its weights are quantised ({method}), which is not supported; use the "
            "original weights in bf16 or fp32",
            code="backbones.quantised",
            key=method,
        )


@torch.no_grad()
def check(model: PreTrainedModel) -> None:
    """Check that a backbone supports external masks and positions, and set our attention on it.

    Raises:
        KavaError: it does not; the error names the type of the model and what is not supported.
    """
    check_config(model.config)
    what = f"backbone of type {model.config.model_type}"
    kinds = structure.windows(model)
    training, record = model.training, None
    model.eval()  # dropout would make the logits differ
    try:
        with no_warnings():
            plain = _whole_text_logits(model)[0]
        with _in_fp32(model), no_warnings():
            theirs, read = _whole_text_logits(model)
            with record_queries(slice(None)) as record:
                ours = _logits_in_pieces(model, kinds)
    except KavaError:
        raise
    except Exception as error:  # the forward pass of an unknown model may raise anything
        if record is not None and not record.queries:  # with masks that only our attention takes
            raise _no_attention_error(model, what, 0) from None
        raise KavaError(
            f"{what}: cannot continue a KV cache with the masks and positions of the caller "
            f"({type(error).__name__}: {first_line(error)})",
            code="backbones.no-continuation",
            key=model.config.model_type,
        ) from None
    finally:
        model.train(training)
    if not (torch.isfinite(plain).all() and torch.isfinite(theirs).all()):
        place = f" in {model.name_or_path}" if model.name_or_path else ""
        raise KavaError(
            f"{what}{place}: its logits are not finite; the weights are damaged, or a training "
            "run diverged",
            code="backbones.not-finite",
            key=model.config.model_type,
        )
    if not _logits_agree(theirs, read):
        raise KavaError(
            f"{what}: its language-model head is not supported; it must be a matrix product with "
            "an optional soft cap",
            code="backbones.other-head",
            key=model.config.model_type,
        )
    _check_layers(model, kinds, record, what)
    if not _logits_agree(theirs, ours):
        raise KavaError(
            f"{what}: its logits after a cache with gaps differ from those for the whole text; it "
            "ignores the masks and positions of the caller, or its attention is more than scaled "
            "dot products with a soft cap",
            code="backbones.other-logits",
            key=model.config.model_type,
        )


@contextmanager
def _in_fp32(model: PreTrainedModel) -> Iterator[None]:
    """Compute in fp32 with half-precision weights, which are cast one layer at a time.

    Published models have a few activations that are a thousand times as large as the others and
    that cancel out later. In bf16, rounding then changes the logits of unusual token ids, such as
    those of this test: on SmolLM2-135M, two attention implementations of transformers itself differ
    by the whole standard deviation of the logits. No tolerance in bf16 would tell such a model from
    one that ignores positions.

    Only one layer is widened at a time, because a second copy of a large model may not fit.
    """
    layers = structure.layers(model) if _half_tensors(model) else []
    stored: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        stored[module] = [(tensor, tensor.data) for tensor in _half_tensors(module)]
        for tensor, data in stored[module]:
            tensor.data = data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for tensor, data in stored.pop(module, ()):
            tensor.data = data

    hooks = [layer.register_forward_pre_hook(widen, prepend=True) for layer in layers]
    hooks += [layer.register_forward_hook(restore, always_call=True) for layer in layers]
    inside = {id(tensor) for layer in layers for tensor in _half_tensors(layer)}
    outside = [(t, t.data) for t in _half_tensors(model) if id(t) not in inside]
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")  # TF32 has three more bits than bf16
        for tensor, data in outside:
            tensor.data = data.float()
        with torch.autocast(model.device.type, enabled=False):  # the caller's would round again
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            restore(layer)
        for tensor, data in outside:
            tensor.data = data


def _half_tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers in half precision."""
    tensors = (*module.parameters(), *module.buffers())
    return [tensor for tensor in tensors if tensor.dtype in _HALF]


def _probe_ids(model: PreTrainedModel) -> Tensor:
    rows = structure.table(model).weight.shape[0]
    return (torch.arange(1, TOKENS + 1, device=model.device) % rows)[None]


def _whole_text_logits(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Compute logits with the model itself, and from its last hidden states with our head.

    Returns:
        Two tensors [tokens, vocabulary].
    """
    model.set_attn_implementation("eager")
    inputs = {"input_ids": _probe_ids(model), "use_cache": False}
    hidden = model.base_model(**inputs).last_hidden_state
    return model(**inputs).logits[0], structure.logits(model, hidden)[0]


def _logits_in_pieces(model: PreTrainedModel, kinds: masks.Windows) -> Tensor:
    """Compute the same logits in three forward passes, each of which continues a padded cache.

    There is padding before, between and after the tokens.

    Returns:
        The logits [tokens, vocabulary].
    """
    model.set_attn_implementation(IMPLEMENTATION_NAME)
    embeds = model.get_input_embeddings()(_probe_ids(model))
    context = MaskedCache.empty(1, model.device)
    kept = []
    for part, pads in ((slice(0, 2), (2, 0)), (slice(2, 4), (0, 1)), (slice(4, None), (0, 1))):
        piece = torch.nn.functional.pad(embeds[:, part], (0, 0, *pads))
        real = torch.ones_like(embeds[:, part, 0], dtype=torch.bool)
        mask = torch.nn.functional.pad(real, pads)
        output, context = structure.extend(model, kinds, context, piece, mask)
        kept.append(output.last_hidden_state[mask])
    return structure.logits(model, torch.cat(kept))


def _no_attention_error(model: PreTrainedModel, what: str, layer: int) -> KavaError:
    return KavaError(
        f"{what}: layer {layer} does not use the attention interface of transformers (it is "
        "recurrent, or of an older design), but the keys and values of every layer are needed",
        code="backbones.no-attention",
        key=model.config.model_type,
    )


def _check_layers(
    model: PreTrainedModel, kinds: masks.Windows, record: QueryRecord, what: str
) -> None:
    """Check that every layer uses transformers' attention interface, with the expected window.

    Raises:
        KavaError: a layer does not.
    """
    layers = model.config.num_hidden_layers
    for layer in range(layers):
        if layer not in record.queries:
            raise _no_attention_error(model, what, layer)
        window = kinds[model.config.layer_types[layer]] if isinstance(kinds, dict) else kinds
        if record.window[layer] != window:
            raise KavaError(
                f"{what}: layer {layer} has a sliding window of {record.window[layer]}, but its "
                f"configuration says {window}",
                code="backbones.other-window",
                key=model.config.model_type,
            )


def _logits_agree(one: Tensor, other: Tensor) -> bool:
    """Whether two computations of the same logits agree up to rounding."""
    if one.shape != other.shape:
        return False
    gap = (one.float() - other.float()).square().mean().sqrt()
    spread = one.float().std()
    return bool(gap <= TOLERANCE * spread)
