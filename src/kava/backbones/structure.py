"""Properties that differ between model families, read from the model without naming a class.

The names of the layers that LoRA adapts are in `kava.backbones.lora`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kava.backbones import attention, cache, masks
from kava.backbones.masked_cache import MaskedCache
from kava.errors import KavaError


@runtime_checkable
class Output(Protocol):
    """Output of a backbone's forward pass over new columns, as in transformers.

    Args:
        last_hidden_state: [batch, columns, hidden].
        hidden_states: the input of the first layer and the output of each layer, if requested.
        past_key_values: the cache, including the new columns.
    """

    last_hidden_state: Tensor
    hidden_states: Sequence[Tensor]
    past_key_values: Any


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder layers of a model, in order.

    Raises:
        KavaError: the layers are not found.
    """
    number = model.config.get_text_config().num_hidden_layers
    lists = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    found = next((one for one in lists if len(one) == number), None)
    if found is None:
        raise KavaError(
            f"backbone of type {model.config.model_type}: the list of its {number} layers was not "
            "found",
            code="backbones.no-layers",
            key=model.config.model_type,
        )
    return list(found)


@contextmanager
def states_of_layers(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the input of the first layer and the output of each layer inside the `with` block.

    transformers' own mechanism also registers hooks on every attention module, which would break
    the graphs of compiled layers.
    """
    states: list[Tensor] = []

    def append(_: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        if not states:
            states.append(inputs[0] if inputs else named["hidden_states"])
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(append, with_kwargs=True) for layer in layers(model)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def windows(model: PreTrainedModel) -> masks.Windows:
    """Return the sliding window of a model's layers in positions, None for full attention.

    The result is one value for all layers or, if the config of the model names kinds of layers
    (`layer_types`), one for each kind. transformers takes one attention mask in the first case and
    one for each kind in the second.

    Raises:
        KavaError: a kind of layer has neither full nor sliding-window attention.
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None:
        return window
    known = {"full_attention": None, "sliding_attention": window}
    for kind in config.layer_types:
        if kind not in known:
            raise KavaError(
                f"backbone of type {config.model_type}: layers of kind '{kind}' are not "
                f"supported; supported: {', '.join(known)}",
                code="backbones.unknown-layer-kind",
                key=kind,
            )
    return {kind: known[kind] for kind in dict.fromkeys(config.layer_types)}


def extend(
    model: PreTrainedModel,
    kinds: masks.Windows,
    context: MaskedCache,
    embeds: Tensor,
    mask: Tensor,
    hidden_states: bool = False,
) -> tuple[Output, MaskedCache]:
    """Run a model on new columns that follow a KV cache; see `Reasoner.extend`.

    Args:
        kinds: the model's sliding windows, from `windows`.
    """
    past, kv_cache = context.attention_mask, cache.fork(context.past_key_values)
    dtype = attention.compute_dtype(embeds.dtype, embeds.device)
    copies = attention.mask_copies(model, embeds)
    with states_of_layers(model) if hidden_states else nullcontext() as states:
        output = model.base_model(
            inputs_embeds=embeds,
            attention_mask=masks.layer_masks(past, mask, kinds, dtype, copies),
            position_ids=masks.positions(past, mask),
            past_key_values=kv_cache,
            use_cache=True,
        )
    if states is not None:
        output.hidden_states = (*states[:-1], output.last_hidden_state)
    return output, MaskedCache(output.past_key_values, torch.cat((past, mask), dim=1))


def table(model: PreTrainedModel) -> nn.Embedding:
    """Return the module of the input embeddings."""
    return cast(nn.Embedding, model.get_input_embeddings())


def head(model: PreTrainedModel) -> nn.Module:
    """Return the language-model head."""
    return cast(nn.Module, model.get_output_embeddings())


@torch.no_grad()
def embeddings(model: PreTrainedModel) -> Tensor:
    """Return the input embeddings of all token ids, [vocabulary, hidden] in fp32.

    These are the inputs of the first layer, not the stored weights, which a model may scale
    (Gemma).
    """
    own = table(model)
    return own(torch.arange(own.weight.shape[0], device=own.weight.device)).float()


def unreadable_ids(
    model: PreTrainedModel, tokenizer: Any, special_tokens: Iterable[str]
) -> list[int]:
    """Return token ids for which the tokenizer has no text, and which must not be generated.

    The sizes of published vocabularies are rounded up (Qwen), so tokens that are added to the
    tokenizer may get an id that has an embedding in the model. Their embeddings are separate
    parameters of kava; the model's embedding of that id is not used.

    Args:
        special_tokens: tokens that kava added to the tokenizer.

    Raises:
        KavaError: the tokenizer has a text token for which the model has no embedding.
    """
    rows, ours = table(model).weight.shape[0], set(special_tokens)
    readable = {id: text for text, id in tokenizer.get_vocab().items() if text not in ours}
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    needed = (readable.keys() - special) | {tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    if max(needed) >= rows:
        last = readable[max(needed)]
        raise KavaError(
            f"tokenizer: the token {last!r} has id {max(needed)}, but this "
            f"{model.config.model_type} has {rows} embedding rows; check that the tokenizer "
            "belongs to this model",
            code="backbones.other-tokenizer",
            key=last,
        )
    return [id for id in range(rows) if id not in readable]


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Map hidden states [..., hidden] to logits [..., vocabulary].

    The soft cap of backbones that have one (Gemma-2) is applied.
    """
    scores = head(model)(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return scores if cap is None else torch.tanh(scores / cap) * cap
