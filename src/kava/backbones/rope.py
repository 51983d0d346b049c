"""Keys before the rotary embedding, from keys after it, and keys that move to another place.

Written step j stands at position Q + j, the latent of its slot at Q + 1 + i, and a compressed trace
moves further: the same content has another key only because it stands elsewhere. Turning each key
back by its own position takes that difference out of the comparison (`kv.keys: pre_rope`). Turned
on by another position, it is the key that the same content has there (`kava ablate`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kava.backbones import cache, structure
from kava.backbones.cache import KeyValues
from kava.errors import KavaError


def uses_rope(model: PreTrainedModel) -> bool:
    """Whether keys are rotated by their position; else position enters with the embeddings."""
    return getattr(model.base_model, "rotary_emb", None) is not None


def remove_rope(model: PreTrainedModel, pairs: KeyValues, positions: Tensor) -> KeyValues:
    """Keys without their rotation; values as they are. Nothing to do for a model without one.

    Args:
        pairs: one pair of [B, H, n, D] per layer.
        positions: [B, n], where each column stands.
    """
    angles = _angles(model, pairs, positions)
    if angles is None:
        return pairs
    return [
        (_turn_back(keys.float(), *layer).to(keys.dtype), values)
        for (keys, values), layer in zip(pairs, angles, strict=True)
    ]


def reposition_keys(
    model: PreTrainedModel, pairs: KeyValues, positions: Tensor, to: Tensor
) -> KeyValues:
    """Keys as they would be at other positions; values as they are.

    Nothing to do for a model without a rotation: learned positions (GPT-2) enter with the
    embeddings, and no key can be freed from them.

    Args:
        pairs: one pair of [B, H, n, D] per layer.
        positions: [B, n], where each column stands.
        to: [B, n], where it shall stand.
    """
    before, after = (_angles(model, pairs, place) for place in (positions, to))
    if before is None or after is None:
        return pairs
    return [
        (_turn(_turn_back(keys.float(), *old), *new).to(keys.dtype), values)
        for (keys, values), old, new in zip(pairs, before, after, strict=True)
    ]


def _angles(
    model: PreTrainedModel, pairs: KeyValues, positions: Tensor
) -> list[tuple[Tensor, Tensor]] | None:
    """Cosine and sine of each layer, [B, n, rotated features]; None without a rotation."""
    if not uses_rope(model):
        return None
    rotary = cast(Any, model.base_model.rotary_emb)
    kinds: list[tuple] = [()] * len(pairs)
    if hasattr(rotary, "layer_types"):  # another rotation for each kind of layer (Gemma-3)
        kinds = [(kind,) for kind in model.config.layer_types[: len(pairs)]]
    angles = {kind: rotary(pairs[0][0], positions, *kind) for kind in set(kinds)}
    return [angles[kind] for kind in kinds]


#: Share of a key that rounding may take, by whether it is held in fp32.
_ROUNDING = {True: 1e-3, False: 2e-2}


def _turn(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """k cos + half(k) sin, in fp32. A model may rotate only the first features of a head."""
    turned, half, rest = _parts(keys, cos)
    return torch.cat((turned * cos[:, None].float() + half * sin[:, None].float(), rest), dim=-1)


def _turn_back(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same, solved for k; cos^2 + sin^2 is above 1 where a model scales its rotation."""
    cos, sin = cos[:, None].float(), sin[:, None].float()
    turned, half, rest = _parts(keys, cos)
    back = (turned * cos - half * sin) / (cos.square() + sin.square())
    return torch.cat((back, rest), dim=-1)


def _parts(keys: Tensor, cos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The features that are rotated, the same with their halves exchanged, and the others."""
    size = cos.shape[-1]
    turned, rest = keys[..., :size], keys[..., size:]
    left, right = turned.chunk(2, dim=-1)
    return turned, torch.cat((-right, left), dim=-1), rest


@torch.no_grad()
def check(model: PreTrainedModel, needed: str, instead: str) -> None:
    """Raise a KavaError where a model's rotation is of another kind than ours is the inverse of.

    In the first layer a key depends on its token alone, so one token at many positions must have
    one key once it is turned back.

    Args:
        needed: what turns keys back, for the message.
        instead: what would be right, for the message.
    """
    if not uses_rope(model):
        return
    size, dtype = structure.table(model).weight.shape[1], model.dtype
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
        keys = remove_rope(model, first, positions)[0][0].float()
        # Of the whole key: rounding goes by its largest features, which the rotation mixes in.
        gap = (keys - keys[:, :, :1]).norm(dim=-1)
        same = bool((gap <= _ROUNDING[dtype == torch.float32] * keys.norm(dim=-1)).all())
    except (TypeError, RuntimeError):  # angles of another form than ours
        same = False
    if not same:
        raise KavaError(
            f"{needed} is not known for backbones of type {model.config.model_type}; {instead}",
            code="backbones.unknown-rotation",
            key=model.config.model_type,
        )
