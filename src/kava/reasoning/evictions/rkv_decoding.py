"""R-KV as its own paper uses it, while decoding (Cai et al., arXiv:2505.24133).

    I = max-pooling over neighbouring columns of the mean attention of the observation tokens
    c = cosine similarity of keys; c_ij = 0 at i = j, and at those j that i spares
    R = softmax over columns j of ( mean_i c_ij )       high where others repeat the key
    Z = lambda I - (1 - lambda) R                       high is kept

Token i spares the most recent of the tokens more similar to it than the threshold, so that of
several near-copies the last one does not count as a repetition.

Theirs, read in the paper and in the authors' code: the formulas above; the group's largest logit
before the softmax (`kava.backbones.attention`); the defaults 7, 0.1 and 0.5; the names of the
directions.
Ours, where that code does something else: a token that is similar to none spares none (theirs then
spares column 0, whatever its similarity); `first` and the two `percent` directions do what
their names say (theirs pick column 0 or one token); pads, and each row of a batch by itself (as
first published, theirs scored the first row's keys for all); fp32 throughout; the similarity matrix
in pieces.

`rkv` is the form that KaVa trains with: no pooling, no threshold, and the sign of R turned. This
one can be trained with too (`kv.eviction.name: rkv_decoding`, with these defaults): the answer's
tokens observe, and as none of them is among the reasoning tokens, no recent token is kept for free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.backbones.attention import masked_softmax
from kava.errors import KavaError, unknown
from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.reasoning.evictions.rkv import importance
from kava.shapes import Bool, Float, Int

DIRECTIONS = ("last", "first", "last_percent", "first_percent")
#: Rows of the similarity matrix held at a time: a long prompt would need gigabytes for all.
ROWS = 512


@dataclass
class RKVDecoding(Eviction):
    """Z = lambda I - (1 - lambda) R.

    Args:
        kernel: columns of the max-pooling, an odd number; 1 is none.
        threshold: cosine above which two keys are near-copies.
        retain: which near-copies of each token are spared: its last or first one, or the last or
            first `retain_ratio` of the row's length (at least one).
        retain_ratio: only for the two `percent` directions; 0.2 is the authors'.

    Raises:
        KavaError: a value out of range, or an unknown direction.
    """

    kernel: int = 7
    threshold: float = 0.5
    retain: str = "last"
    retain_ratio: float = 0.2
    needs_attention = True

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, int) or self.kernel < 1 or self.kernel % 2 == 0:
            raise KavaError(
                f"rkv_decoding: kernel is {self.kernel!r}; give an odd whole number",
                code="reasoning.bad-setting",
                key="kernel",
            )
        for name, least in (("lam", 0), ("threshold", -1), ("retain_ratio", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= 1:
                name = "lambda" if name == "lam" else name
                raise KavaError(
                    f"rkv_decoding: {name} is {value!r}; give {least} to 1",
                    code="reasoning.bad-setting",
                    key=name,
                )
        if self.retain not in DIRECTIONS:
            raise unknown(
                "direction of rkv_decoding's retain",
                str(self.retain),
                DIRECTIONS,
                code="reasoning.unknown-direction",
            )

    def score(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """[B, H, C]."""
        parts = self.parts(scored)
        return self.lam * parts["importance"] - (1 - self.lam) * parts["redundancy"]

    def parts(self, scored: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """I after its pooling; R, high where a key is repeated (`rkv` has it the other way)."""
        if scored.keys.shape[2] == 0:
            none = scored.keys.new_zeros(scored.keys.shape[:3])
            return {"importance": none, "redundancy": none}
        pooled = torch.nn.functional.max_pool1d(
            importance(scored), self.kernel, stride=1, padding=self.kernel // 2
        )
        return {"importance": pooled, "redundancy": self.redundancy(scored)}

    def redundancy(self, scored: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """R, [B, H, C]; zero at pads."""
        mask, columns = scored.mask, scored.keys.shape[2]
        unit = torch.nn.functional.normalize(scored.keys.float(), dim=-1)
        unit = unit * mask[:, None, :, None]
        count = mask.sum(1).clamp(min=1)
        total = torch.zeros_like(unit[..., 0])
        column = torch.arange(columns, device=mask.device)
        for rows in column.split(ROWS):
            another = (rows[:, None] != column) & mask[:, None, None, :]
            with torch.autocast(unit.device.type, enabled=False):  # which would make bf16 of it
                cosine = unit[:, :, rows] @ unit.transpose(2, 3) * another
            spared = self.spared((cosine > self.threshold) & another, count)
            total += cosine.masked_fill(spared, 0).sum(2)
        return masked_softmax(total / count[:, None, None], mask[:, None, :])

    def spared(
        self,
        similar: Bool[Tensor, "batch kv_heads rows steps"],
        count: Int[Tensor, "batch"],
    ) -> Bool[Tensor, "batch kv_heads rows steps"]:
        """Which of the columns similar to a row are spared by it, [B, H, rows, C].

        Args:
            similar: [B, H, rows, C].
            count: [B], real tokens of each row of the batch.
        """
        direction, _, percent = self.retain.partition("_")
        most = (
            (self.retain_ratio * count).long().clamp(min=1) if percent else torch.ones_like(count)
        )
        ahead = similar.cumsum(-1)
        if direction == "last":
            ahead = ahead[..., -1:] - ahead + similar
        return similar & (ahead <= most[:, None, None, None])


IMPLEMENTATION = RKVDecoding
