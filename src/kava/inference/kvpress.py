"""Our `rkv` as a press for NVIDIA's kvpress, which must be installed (the extra `kvpress`).

    from kava.inference.kvpress import RKVPress

    with RKVPress(compression_ratio=0.5)(model):
        model(input_ids, past_key_values=cache)

A press compresses a prompt after its prefill; kvpress's `DecodingPress(RKVPress(), ...)` continues
during decoding. The score is that of `kava.reasoning.evictions.rkv`, with the last `window` tokens
as observers in place of an answer; these are always kept. The budget is that of kvpress: a ratio,
the same for every sequence. kvpress passes no mask to a press, so a batch must not be padded, and
it stores the kept tokens in the order of their scores. `kava.inference.compressed` has neither
limitation.

This file and its imports work with the versions of transformers that kvpress allows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kava.backbones.attention import answer_attention
from kava.errors import KavaError
from kava.reasoning.evictions import EvictionInputs
from kava.reasoning.evictions.rkv import RKV

try:
    from kvpress import ScorerPress
    from kvpress.utils import get_prerope_query_states
except ImportError as error:
    raise KavaError(
        f"kava.inference.kvpress needs NVIDIA's kvpress ({error}); pip install kvpress, in an "
        "environment with a version of transformers that it supports",
        code="inference.no-kvpress",
        key="kvpress",
    ) from None

#: Larger than every score, because importance and redundancy are at most 1.
ALWAYS_KEPT = 2.0


@dataclass
class RKVPress(ScorerPress):
    """Press with the score S = lambda I + (1 - lambda) R (KaVa, Listing 1).

    Args:
        compression_ratio: fraction of the tokens to remove.
        window: number of last tokens that observe, and are kept.
        lam: lambda, the weight of the importance.

    Raises:
        KavaError: if `window` or `lam` is out of range.
    """

    compression_ratio: float = 0.0
    window: int = 8
    lam: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or not 0 <= self.lam <= 1:
            raise KavaError(
                f"RKVPress: window must be 1 or more and lam from 0 to 1, not {self.window} and "
                f"{self.lam}",
                code="reasoning.bad-setting",
                key="window" if self.window < 1 else "lam",
            )

    def score(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Compute the score of each token: [batch, kv_heads, tokens]; higher is kept.

        See kvpress's ScorerPress for the arguments. Observers are the last `window` of
        `hidden_states`, or as many as there are.
        """
        batch, window = keys.shape[0], min(self.window, hidden_states.shape[1])
        candidates = keys[:, :, :-window]
        queries = get_prerope_query_states(module, hidden_states[:, -window:])
        queries = _rotate(queries, *kwargs["position_embeddings"])
        before = torch.ones(batch, candidates.shape[2], dtype=torch.bool, device=keys.device)
        observing = torch.ones(batch, window, dtype=torch.bool, device=keys.device)
        attention = answer_attention(queries, candidates, before, module.scaling)
        scores = RKV(lam=self.lam).score(EvictionInputs(candidates, before, attention, observing))
        return nn.functional.pad(scores, (0, window), value=ALWAYS_KEPT)


def _rotate(queries: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to queries: [batch, heads, n, head_dim].

    `cos` and `sin` end at the last query. While decoding, kvpress knows the rotation of the newest
    token only, so it is used for all of them.
    """
    cos, sin = (part[:, None, -queries.shape[2] :].to(queries.dtype) for part in (cos, sin))
    left, right = queries.chunk(2, dim=-1)
    return queries * cos + torch.cat((-right, left), dim=-1) * sin
