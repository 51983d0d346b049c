"""Say where and how a model computes: device, dtypes, rows at once and attention kernel."""

import torch
from torch.nn.attention import SDPBackend
from transformers import PreTrainedModel

from kava.backbones import attention, masks
from kava.system.text import format_count

#: Kernels of torch's scaled-dot-product attention, in words.
_KERNELS = {
    SDPBackend.MATH: "plain operations",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
}


def describe(model: PreTrainedModel, autocast: bool, rows: int) -> str:
    """Describe the device, the dtypes, the rows at once and the attention kernel in one line.

    Args:
        model: the backbone on its device.
        autocast: whether it computes in bf16 autocast.
        rows: number of examples or questions in one forward pass.
    """
    device = model.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    computed = torch.bfloat16 if autocast else model.dtype
    at_once = f"{format_count(rows, 'row')} at once"
    slow = ""
    if device.type == "cpu" and computed is torch.bfloat16 and not computes_in_bf16():
        slow = "; this processor has no bf16 instructions, so float32 is faster"
    return (
        f"device: {device.type}{name}; weights in {_short_name(model.dtype)}, computed in "
        f"{_short_name(computed)}; {at_once}; attention: {kernel(model, computed)}{slow}"
    )


def computes_in_bf16() -> bool:
    """Return whether the processor has instructions for bf16, or torch does not tell."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # newer than our oldest torch
    found = [has for name, has in known.items() if "bf16" in name]
    return any(found) or not found


@torch.no_grad()
def kernel(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """Return the attention kernel that torch chooses for a forward pass with a mask, in words."""
    config, device = model.config.get_text_config(), model.device
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "soft-capped, in blocks of queries"
    heads, shared, size = attention.head_sizes(config)
    like = torch.empty(1, _COLUMNS, config.hidden_size, dtype=dtype, device=device)
    copies = attention.mask_copies(model, like)
    real = torch.ones(1, _COLUMNS, dtype=torch.bool, device=device)
    mask = masks.to_additive(masks.causal_mask(real[:, :0], real), dtype, copies)[..., :_COLUMNS]
    rows = copies * _COLUMNS
    query = torch.empty(1, heads // copies, rows, size, dtype=dtype, device=device)
    key = torch.empty(1, shared, _COLUMNS, size, dtype=dtype, device=device)
    grouped = heads // copies != shared
    choice = torch._fused_sdp_choice(  # pyright: ignore[reportPrivateImportUsage]
        query, key, key, mask.flatten(1, 2)[:, None], enable_gqa=grouped
    )
    return _KERNELS.get(SDPBackend(choice), "unknown")


_COLUMNS = 16


def _short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
