"""Estimate the memory of a training step from the shape of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from kava.backbones import loading, lora, pretrained
from kava.backbones.published import PUBLISHED
from kava.errors import KavaError
from kava.reasoning import checkpoint
from kava.reasoning.interface import SPECIAL_TOKENS
from kava.reasoning.losses.cross_entropy import labels_at_once
from kava.reasoning.projection import Projection
from kava.recipe import registry
from kava.recipe.schema import Recipe


@dataclass(frozen=True)
class Call:
    """One forward pass: new columns of each row, with padding, which attend to `keys` columns."""

    rows: int
    columns: int
    keys: int

    @property
    def tokens(self) -> int:
        """Return the number of input tokens, including padding."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Traffic:
    """The forward passes through a backbone during one or more losses.

    labels: number of positions at which logits were computed.
    """

    calls: Sequence[Call] = ()
    labels: int = 0

    @property
    def tokens(self) -> int:
        """Return the total number of tokens over all forward passes."""
        return sum(call.tokens for call in self.calls)

    def times(self, share: float) -> Traffic:
        """Return the same traffic with the numbers of rows and labels scaled by `share`."""
        calls = [replace(call, rows=round(share * call.rows)) for call in self.calls]
        return Traffic(calls, round(share * self.labels))


@dataclass(frozen=True)
class Memory:
    """Memory at the peak of a training step, in bytes."""

    weights: float
    gradients: float
    optimiser: float
    activations: float

    @property
    def total(self) -> float:
        """Return the total number of bytes."""
        return self.weights + self.gradients + self.optimiser + self.activations


def estimate(recipe: Recipe, seen: Traffic, device: str, model: nn.Module | None = None) -> Memory:
    """Estimate the memory of one process, without compiled layers and without sharded weights.

        weights      4 per trained weight; 2 or 4 (bf16, fp32) per frozen one; if weights are
                     trained in bf16 autocast, 2 more for their copies
        gradients    4 per trained weight
        optimiser    8 per trained weight: AdamW's two moments in fp32
        activations  see `activation_bytes`
        left out     distillation losses, activations of the latent projection, fragmentation in the
                     allocator, the half gigabyte of CUDA itself, validation

    Args:
        seen: the traffic of one micro-batch.
        device: where the training would run, `cpu` or `cuda`.
        model: the recipe's model, from `without_values`; made here if not given.

    Raises:
        KavaError: if the backbone's shape is neither on this machine nor known.
    """
    model = model or without_values(recipe)
    frozen, trained = count_weights(recipe, model)
    weights = 4 * trained + loading.choose_dtype(recipe, device).itemsize * frozen
    if recipe.adapter == "full" and autocasts(recipe, device):
        weights += 2 * trained
    activations = activation_bytes(recipe, model, seen, autocasts(recipe, device), device)
    return Memory(weights, 4 * trained, 8 * trained, activations)


def activation_bytes(
    recipe: Recipe, model: nn.Module, seen: Traffic, autocast: bool, device: str
) -> float:
    """Estimate the bytes that all forward passes of a micro-batch keep for the backward pass.

    With b bytes per value (2 in bf16 autocast, otherwise 4), d the hidden size, q the width of all
    query heads together, v that of the key/value heads, f the inner size of the MLP, per layer:

        per token             8 d + b (3 q + 3 f)     inputs of the norms, attention, gated MLP
          + weights trained   8 d + b (2 d + f)       inputs of the weights
          + an adapter        (b + 1) n + b r         per adapted module of n inputs: dropout, A, B
        per key               b 2 v                   cached
        per cell of a mask    b                       on GPUs q / v times: for each query head that
                                                      shares keys; or, in passes with more than 2 v
                                                      columns, once, and b 2 q more per key

    With gradient checkpointing, the above for one layer and the largest forward pass, which are
    recomputed in the backward pass, and per layer:

        per token             b d                     its input
        per key               b 2 v                   cached

    Once, per label and entry of the vocabulary, 8 + b: logits, probabilities, gradient. If the head
    is frozen, this is for as many labels as are processed at once (`losses.cross_entropy`). They
    are freed before the first layer is recomputed.

    The formula was derived from the operations of transformers' Llama (ours). On small Llamas it is
    within 15 % of what autograd keeps; it is less accurate for other families and attention
    kernels.
    """
    shape = model.config.get_text_config()
    b, d = 2 if autocast else 4, shape.hidden_size
    head = getattr(shape, "head_dim", None) or d // shape.num_attention_heads
    q = head * shape.num_attention_heads
    v = head * (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads)
    f = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * d
    per_token = 8 * d + b * (3 * q + 3 * f)
    if recipe.adapter == "full":
        per_token += 8 * d + b * (2 * d + f)
    adapted = [m for m in model.modules() if getattr(m, "lora_A", None)]
    adapters = sum((b + 1) * m.in_features + b * recipe.lora.r for m in adapted)
    per_token += adapters / shape.num_hidden_layers

    def in_a_layer(call: Call) -> float:
        keys, repeated, masks = call.rows * call.keys, 0, 1
        if device != "cpu" and q > v:  # as in `attention`
            repeated, masks = (2 * q, 1) if call.columns > 2 * v else (0, q // v)
        per_key = b * (2 * v + repeated + masks * call.columns)
        return call.tokens * per_token + keys * per_key

    labels = min(seen.labels, labels_at_once(model) or seen.labels)
    logits = labels * shape.vocab_size * (8 + b)
    if not recipe.train.gradient_checkpointing:
        return shape.num_hidden_layers * sum(map(in_a_layer, seen.calls)) + logits
    kept = sum(call.tokens * b * d + call.rows * call.keys * b * 2 * v for call in seen.calls)
    again = max(map(in_a_layer, seen.calls), default=0)
    return shape.num_hidden_layers * kept + max(logits, again)


def autocasts(recipe: Recipe, device: str) -> bool:
    """Whether the Trainer computes in bf16 autocast."""
    precision = recipe.train.precision
    return precision == "bf16" or (precision == "auto" and device == "cuda")


def without_values(recipe: Recipe, config: Any = None) -> Any:
    """Build the backbone with its adapter, with shapes but no values (device `meta`).

    Args:
        config: another configuration than that of the recipe's backbone.

    Raises:
        KavaError: if the backbone's shape is neither on this machine nor known.
    """
    with torch.device("meta"):
        model = pretrained.new_model(config or _config(recipe), dtype=torch.float32)
        return lora.add(model, lora.resolve(model, recipe))


def count_weights(recipe: Recipe, model: Any) -> tuple[int, int]:
    """Count frozen and trained weights of a model of `without_values`, with its additions."""
    adapted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    own = len(SPECIAL_TOKENS) * _hidden_size(model)
    own += sum(p.numel() for p in projection(recipe, model).parameters())
    return sum(p.numel() for p in model.parameters()) - adapted, adapted + own


def projection(recipe: Recipe, model: Any) -> Projection:
    """Build the latent projection that the recipe adds to this model, also without values."""
    latents = registry.find("methods", recipe.method).uses_latents
    with torch.device("meta"):
        kind = recipe.projection if latents else "none"
        return Projection(kind, _hidden_size(model), recipe.projection_dim, 1.0)


def _hidden_size(model: Any) -> int:
    return model.config.get_text_config().hidden_size


def _config(recipe: Recipe) -> Any:
    """Load the backbone's configuration; for a finished run, that of its own backbone."""
    try:
        folder, _ = loading.locate(recipe.backbone, recipe.revision)
    except KavaError:
        if recipe.backbone in PUBLISHED:
            return AutoConfig.for_model(**PUBLISHED[recipe.backbone])
        raise KavaError(
            f"{recipe.backbone}: its config.json was not found on this machine",
            code="sweeps.config-not-here",
            key=recipe.backbone,
        ) from None
    if checkpoint.is_checkpoint(folder):
        folder = checkpoint.locate(folder)
        if (folder / "backbone").is_dir():
            folder = folder / "backbone"
        else:
            below = checkpoint.describe(folder)["backbone"]
            names = {"backbone": below["name"], "revision": below["revision"]}
            return _config(recipe.model_copy(update=names))
    try:
        return pretrained.load_config(folder)
    except (OSError, ValueError):
        raise KavaError(
            f"{recipe.backbone}: its config.json does not describe a transformers model",
            code="sweeps.config-of-no-model",
            key=recipe.backbone,
        ) from None
