"""The first token of methods that decode everything after <eot>, chosen as kava does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates


class FirstToken(LogitsProcessor):
    """Take the likeliest token that is not EOS, also if the answer is sampled.

    See `LatentMethod.begin_answer`; ids without text are masked by the model itself.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        eos = vllm_config.model_config.hf_config.eos_token_id
        self.eos = eos if isinstance(eos, list) else [eos]
        #: For each row of the batch, the tokens generated so far; vLLM extends these lists.
        self.generated: dict[int, list[int]] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False: the likeliest token may be EOS."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Keep the generated tokens of the requests that are in the batch."""
        process_dict_updates(self.generated, batch_update, lambda params, prompt, ids: ids)

    def apply(self, logits: Tensor) -> Tensor:
        """Leave one token to each row that has not generated any."""
        rows = [row for row, ids in self.generated.items() if not ids]
        if rows:
            scores = logits[rows]
            scores[:, self.eos] = -torch.inf
            best = scores.argmax(-1, keepdim=True)
            logits[rows] = torch.full_like(scores, -torch.inf).scatter(1, best, 0.0)
        return logits
