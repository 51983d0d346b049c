"""Keys before the rotary embedding, from keys after it (`kv.keys: pre_rope`).

Written step j stands at position Q + j, the latent of its slot at Q + 1 + i, and a compressed trace
moves further: the same content has another key only because it stands elsewhere. Turning each key
back by its own position takes that difference out of the comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kava import cache
from kava.cache import KeyValues
from kava.errors import KavaError


def turned_back(model: PreTrainedModel, pairs: KeyValues, positions: Tensor) -> KeyValues:
    """Keys without their rotation; values as they are. Nothing to do for a model without one.

    Args:
        pairs: one pair of [B, H, n, D] per layer.
        positions: [B, n], where each column stands.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        return pairs
    kinds: list[tuple] = [()] * len(pairs)
    if hasattr(rotary, "layer_types"):  # another rotation for each kind of layer (Gemma-3)
        kinds = [(kind,) for kind in model.config.layer_types[: len(pairs)]]
    angles = {kind: rotary(pairs[0][0], positions, *kind) for kind in set(kinds)}
    return [
        (_turn_back(keys, *angles[kind]), values)
        for (keys, values), kind in zip(pairs, kinds, strict=True)
    ]


def _turn_back(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None].float(), sin[:, None].float()
    # A model may rotate only the first features of a head.
    size = cos.shape[-1]
    turned, rest = keys[..., :size].float(), keys[..., size:]
    left, right = turned.chunk(2, dim=-1)
    # k cos + half(k) sin, solved for k; cos^2 + sin^2 is above 1 where a model scales its rotation.
    back = (turned * cos - torch.cat((-right, left), dim=-1) * sin) / (cos.square() + sin.square())
    return torch.cat((back.to(keys.dtype), rest), dim=-1)


@torch.no_grad()
def check(model: PreTrainedModel) -> None:
    """Raise a KavaError where a model's rotation is of another kind than ours is the inverse of.

    In the first layer a key depends on its token alone, so one token at many positions must have
    one key once it is turned back.
    """
    if getattr(model.base_model, "rotary_emb", None) is None:
        return
    size, dtype = model.get_input_embeddings().weight.shape[1], model.dtype
    one = torch.linspace(-1, 1, size, device=model.device, dtype=dtype)  # a pad's row may be zero
    positions = torch.arange(6, device=model.device)[None]
    output = model.base_model(
        inputs_embeds=one.expand(1, 6, -1),
        attention_mask=torch.ones_like(positions),
        position_ids=positions,
        use_cache=True,
    )
    first = cache.key_values(output.past_key_values)[:1]
    try:
        keys = turned_back(model, first, positions)[0][0].float()
        same = torch.allclose(keys, keys[:, :, :1].expand_as(keys), atol=1e-2, rtol=1e-2)
    except (TypeError, RuntimeError):  # angles of another form than ours
        same = False
    if not same:
        raise KavaError(
            f"kv.keys: pre_rope is not known for backbones of type {model.config.model_type}; "
            "use post_rope"
        )
