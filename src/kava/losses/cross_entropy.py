"""CE: mean over label tokens of the batch (spec, Loss)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, ids: Tensor, count: Tensor) -> Tensor:
    """Sum over labels divided by `count`.

    Args:
        logits: [N, vocabulary], at label positions only.
        ids: [N].
        count: label tokens of the whole batch (more than N where gradients are accumulated).
    """
    return F.cross_entropy(logits.float(), ids, reduction="sum") / count
