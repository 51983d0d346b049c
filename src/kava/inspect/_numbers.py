"""Convert tensors to values that JSON can hold."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Unavailable:
    """A panel that does not exist for this model or question, and the reason."""

    reason: str


def numbers(values: Tensor, mask: Tensor | None = None) -> Any:
    """Return nested lists of floats with four significant digits; None where masked or not finite.

    Args:
        mask: true at the values to return; same shape as `values`.
    """
    if mask is not None:
        values = values.masked_fill(~mask, math.nan)
    return _round(values.detach().float().tolist())


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(one) for one in value]
    return float(f"{value:.4g}") if math.isfinite(value) else None
