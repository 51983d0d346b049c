"""Importance as the attention that later steps pay to a token (ours).

The answer attends to the last step's result and to little else, so importance to the answer keeps
few of the results in between (docs/log.md). Those are what the steps after them read.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


class LaterSteps(Eviction):
    """Keep the tokens that some token of a later step, or of the answer, attends to most.

    During decoding, the observation tokens take the place of the later steps.
    """

    needs_attention = True
    observers = "later_steps"

    def parts(self, inputs: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """Return the importance, the largest attention, [batch, kv_heads, steps]."""
        attention = cast(Tensor, inputs.attention)  # never None if `needs_attention` is true
        real = inputs.answer_mask[:, None, :, None]
        return {"importance": (attention * real).amax(dim=2)}

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return the importance, [batch, kv_heads, steps]."""
        return self.parts(inputs)["importance"]


IMPLEMENTATION = LaterSteps
