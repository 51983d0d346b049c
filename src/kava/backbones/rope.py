"""Remove the rotary embedding from keys, and move keys to other positions.

Token j of the chain of thought is at position Q + j, the latent of its slot at Q + 1 + i, and
compression moves it further. The same content then has another key, only because of its position.
Rotating each key back by its own position removes this difference from the comparison
(`kv.keys: pre_rope`). Rotating it forward to another position yields the key that the same content
would have there (`kava ablate`).
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kava.backbones import cache, structure
from kava.backbones.cache import KeyValues
from kava.errors import KavaError


def uses_rope(model: PreTrainedModel) -> bool:
    """Whether the model has a rotary embedding; otherwise positions are added to the embeddings."""
    return getattr(model.base_model, "rotary_emb", None) is not None


def remove_rope(model: PreTrainedModel, pairs: KeyValues, positions: Tensor) -> KeyValues:
    """Remove the rotary embedding from keys; values are unchanged.

    For a model without a rotary embedding, the keys are unchanged as well.

    Args:
        pairs: for each layer, keys and values [batch, kv_heads, columns, head_dim].
        positions: [batch, columns], position of each column.
    """
    angles = _angles(model, pairs, positions)
    if angles is None:
        return pairs
    return [
        (_rotate_back(keys.float(), *layer).to(keys.dtype), values)
        for (keys, values), layer in zip(pairs, angles, strict=True)
    ]


def reposition_keys(
    model: PreTrainedModel, pairs: KeyValues, positions: Tensor, new_positions: Tensor
) -> KeyValues:
    """Move keys to other positions by changing their rotary embedding; values are unchanged.

    For a model without a rotary embedding, the keys are unchanged as well: learned positions
    (GPT-2) are added to the embeddings and cannot be removed from keys.

    Args:
        pairs: for each layer, keys and values [batch, kv_heads, columns, head_dim].
        positions: [batch, columns], current position of each column.
        new_positions: [batch, columns], new position of each column.
    """
    before, after = (_angles(model, pairs, place) for place in (positions, new_positions))
    if before is None or after is None:
        return pairs
    return [
        (_rotate(_rotate_back(keys.float(), *old), *new).to(keys.dtype), values)
        for (keys, values), old, new in zip(pairs, before, after, strict=True)
    ]


def _angles(
    model: PreTrainedModel, pairs: KeyValues, positions: Tensor
) -> list[tuple[Tensor, Tensor]] | None:
    """Return cosine and sine of the rotary embedding for each layer, or None if there is none.

    Each is [batch, columns, rotated features].
    """
    if not uses_rope(model):
        return None
    rotary = cast(Any, model.base_model.rotary_emb)
    kinds: list[tuple] = [()] * len(pairs)
    if hasattr(rotary, "layer_types"):  # Gemma-3 has another rotation for each kind of layer
        kinds = [(kind,) for kind in model.config.layer_types[: len(pairs)]]
    angles = {kind: rotary(pairs[0][0], positions, *kind) for kind in set(kinds)}
    return [angles[kind] for kind in kinds]


#: Maximum relative rounding error of a key; the dictionary key is whether it is in fp32.
_ROUNDING = {True: 1e-3, False: 2e-2}


def _rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate keys, k cos + half(k) sin, in fp32.

    A model may rotate only the first features of a head; the others are unchanged.
    """
    rotary, half, rest = _split_features(keys, cos)
    return torch.cat((rotary * cos[:, None].float() + half * sin[:, None].float(), rest), dim=-1)


def _rotate_back(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Invert `_rotate`: return the keys before the rotation, in fp32.

    The result is divided by cos^2 + sin^2, which is not 1 if a model scales its rotation.
    """
    cos, sin = cos[:, None].float(), sin[:, None].float()
    rotary, half, rest = _split_features(keys, cos)
    back = (rotary * cos - half * sin) / (cos.square() + sin.square())
    return torch.cat((back, rest), dim=-1)


def _split_features(keys: Tensor, cos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split keys into the rotated features, these with their halves swapped, and the other ones."""
    # Feature i is rotated together with feature i + size / 2, as in transformers. The check below
    # rejects models that rotate neighbouring features.
    size = cos.shape[-1]
    rotary, rest = keys[..., :size], keys[..., size:]
    left, right = rotary.chunk(2, dim=-1)
    return rotary, torch.cat((-right, left), dim=-1), rest


@torch.no_grad()
def check(model: PreTrainedModel, feature: str, alternative: str) -> None:
    """Check that `remove_rope` inverts the rotary embedding of a model.

    In the first layer, a key depends only on its token and position. The same token at several
    positions must therefore have the same key once its rotation is removed.

    Args:
        model: the model to check.
        feature: the feature that needs it, for the error message.
        alternative: what to do instead, for the error message.

    Raises:
        KavaError: the model has another kind of rotation.
    """
    if not uses_rope(model):
        return
    size, dtype = structure.table(model).weight.shape[1], model.dtype
    # Not the embedding of a token: that of a padding token may be zero.
    one = torch.linspace(-1, 1, size, device=model.device, dtype=dtype)
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
        # Compare norms of whole keys: the rotation mixes features, so the rounding error of each
        # depends on the largest ones.
        gap = (keys - keys[:, :, :1]).norm(dim=-1)
        same = bool((gap <= _ROUNDING[dtype == torch.float32] * keys.norm(dim=-1)).all())
    except (TypeError, RuntimeError):  # the angles have another form than expected here
        same = False
    if not same:
        raise KavaError(
            f"{feature} is not supported for backbones of type {model.config.model_type}; "
            f"{alternative}",
            code="backbones.unknown-rotation",
            key=model.config.model_type,
        )
