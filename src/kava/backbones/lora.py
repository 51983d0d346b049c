"""LoRA adapters: which modules of a backbone they adapt, with defaults for each model family."""

import copy
import warnings
from types import MethodType
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kava.errors import KavaError, first_line
from kava.recipe.schema import Recipe

#: The four projections of attention, by the names that most model families use.
USUAL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
#: The same projections for model families (`model_type`) that use other names, one line each.
TARGETS = {"gpt2": ["attn.c_attn", "attn.c_proj"], "phi3": ["qkv_proj", "o_proj"]}


def resolve(model: PreTrainedModel, recipe: Recipe) -> Recipe:
    """Return the recipe with `lora.targets` filled in, if it requests an adapter.

    Raises:
        KavaError: a target is not the name of a linear layer of the model.
    """
    if recipe.adapter != "lora":
        return recipe
    targets = recipe.lora.targets
    if targets is None:
        targets = default_targets(model)
    if isinstance(targets, list):
        _check(model, targets)
    return recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"targets": targets})})


def default_targets(model: PreTrainedModel) -> list[str] | str:
    """Return the targets for a model if the recipe names none.

    They are the four attention projections by their usual names or by those of the family. If a
    layer has another name, they are peft's own for the family, and otherwise all linear layers.
    """
    family = model.config.model_type
    for names in (TARGETS.get(family, USUAL_TARGETS), PEFT_TARGETS.get(family)):
        if isinstance(names, list) and all(_linear(model, [name]) for name in names):
            return names
    return "all-linear"


def describe_default(recipe: Recipe, resolved_recipe: Recipe, family: str) -> str:
    """Describe in one line the targets that were chosen by default, if they are unusual.

    Args:
        recipe: the recipe as it was given.
        resolved_recipe: the same recipe with its defaults filled in.
        family: the `model_type` of the backbone.
    """
    chosen = resolved_recipe.lora.targets
    usual = (None, USUAL_TARGETS, TARGETS.get(family))
    if recipe.adapter != "lora" or recipe.lora.targets is not None or chosen in usual:
        return ""
    described = "all-linear" if chosen == "all-linear" else f"[{', '.join(chosen)}], as in peft"
    return (
        f"lora.targets: a {family} has not all of {', '.join(USUAL_TARGETS)}; the adapter is on "
        f"{described}"
    )


def add(model: PreTrainedModel, recipe: Recipe) -> PeftModel | PreTrainedModel:
    """Add a LoRA adapter to the resolved targets of a model.

    With `adapter: full`, the model is returned unchanged.

    Raises:
        KavaError: peft does not support an adapter on these modules.
    """
    if recipe.adapter == "full":
        return model
    lora, revision = recipe.lora, recipe.revision
    targets = cast("list[str] | str", lora.targets)  # not None: `resolve` has filled them in
    transposed = {isinstance(m, Conv1D) for m in _linear(model, targets).values()}
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=transposed == {True},  # GPT-2 stores its weights transposed
        task_type="CAUSAL_LM",
        revision=revision,
    )
    try:
        with warnings.catch_warnings():
            # peft accesses a property of transformers by its deprecated name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise KavaError(
            f"lora.targets {lora.targets}: {first_line(error)}",
            code="backbones.bad-targets",
            key="lora.targets",
        ) from None
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module._cast_input_dtype = MethodType(_cast_input, module)
    return adapted


def _cast_input(layer: LoraLayer, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the input of a LoRA layer, without a cast under autocast.

    peft casts the input to fp32, the dtype of the adapter's weights, and autocast casts it back to
    bf16. This costs two passes over all activations, and two more in the backward pass, for the
    same result. Skipping the cast is our addition.
    """
    if x is not None and torch.is_autocast_enabled(x.device.type):
        return x
    return type(layer)._cast_input_dtype(layer, x, dtype)


def base_model(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """Return the language model itself, including the adapter's layers."""
    if isinstance(model, PeftModel):
        return cast(PreTrainedModel, model.get_base_model())
    return model


def copy_of_layers(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a language model without its adapter, embeddings and head.

    It takes input embeddings. All its weights are trained, and therefore in fp32.
    """
    lm = base_model(model)
    tables = (lm.get_input_embeddings(), cast(nn.Module, lm.get_output_embeddings()))
    # Tensors without values (`kava bench memory`) can be cloned but not copied by `deepcopy`.
    # Nor can they be converted in place, so that they are in fp32 from the start.
    copies: dict[int, Any] = {id(weight): _in_fp32(weight) for weight in model.buffers()}
    large = {id(weight): weight for table in tables for weight in table.parameters()}
    for weight in model.parameters():
        if id(weight) not in large:
            copies[id(weight)] = nn.Parameter(_in_fp32(weight), weight.requires_grad)
    copies |= large
    copied = copy.deepcopy(model, copies)  # the large tables are shared, and dropped below
    if isinstance(copied, PeftModel):
        copied = cast(PreTrainedModel, copied.unload())
    copied.set_input_embeddings(nn.Identity())
    copied.set_output_embeddings(nn.Identity())
    return copied.requires_grad_(True)


def _in_fp32(weight: Tensor) -> Tensor:
    """Return a copy; of a floating-point tensor in fp32."""
    dtype = torch.float32 if weight.is_floating_point() else weight.dtype
    return weight.detach().to(dtype, copy=True)


def _check(model: PreTrainedModel, targets: list[str]) -> None:
    """Check that each target is the name of a linear layer of the model.

    Raises:
        KavaError: a target is not; the error lists the known names.
    """
    for target in targets:
        if not _linear(model, [target]):
            known = sorted({name.rpartition(".")[2] for name in _linear(model, "all-linear")})
            raise KavaError(
                f"lora.targets: no linear layer of this {model.config.model_type} is called "
                f"'{target}'; it has {', '.join(known)}",
                code="backbones.unknown-target",
                key=target,
            )


def _linear(model: PreTrainedModel, targets: list[str] | str) -> dict[str, nn.Module]:
    """Return the linear layers, without the head, whose full name ends in one of the targets.

    This is the rule of peft. If `targets` is a string, all linear layers are returned.
    """
    head = model.get_output_embeddings()
    found: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    if isinstance(targets, str):
        return found
    return {
        name: module
        for name, module in found.items()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    }
