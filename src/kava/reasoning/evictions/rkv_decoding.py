"""R-KV eviction during decoding, as in the R-KV paper (Cai et al., arXiv:2505.24133).

    I = max-pooling over neighbouring columns of the mean attention of the observation tokens
    c = cosine similarity of keys; c_ij = 0 at i = j, and at those j that i spares
    R = softmax over columns j of ( mean_i c_ij )       high where other tokens repeat the key
    Z = lambda I - (1 - lambda) R                       the highest are kept

Token i spares the most recent of the tokens whose similarity to it exceeds the threshold. The last
of several near-copies therefore does not count as a repetition.

From the paper and the authors' code: the formulas above; the largest logit of each group of query
heads before the softmax (`kava.backbones.attention`); the defaults 7, 0.1 and 0.5; the names of the
directions.

Where we differ from the authors' code: a token that is similar to no other spares none (their code
then spares column 0, regardless of its similarity). `first` and the two `percent` directions do
what their names say (their code selects column 0 or a single token). Padding is supported, and each
example of a batch is scored by its own keys (their code, as first published, scored the keys of the
first example for all). All computation is in fp32. The similarity matrix is computed in chunks.

`rkv` is the form that KaVa trains with: it has no pooling and no threshold, and R has the opposite
sign. This form can be used for training as well (`kv.eviction.name: rkv_decoding`, with these
defaults). The answer tokens are then the observation tokens. None of them is among the reasoning
tokens, so no recent token is kept regardless of its score.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.backbones.attention import masked_softmax
from kava.errors import KavaError, unknown_name
from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.reasoning.evictions.rkv import importance
from kava.shapes import Bool, Float, Int

DIRECTIONS = ("last", "first", "last_percent", "first_percent")
#: Rows of the similarity matrix in memory at a time; a whole matrix can take gigabytes.
ROWS = 512


@dataclass
class RKVDecoding(Eviction):
    """Keep the tokens with the highest R-KV score Z = lambda I - (1 - lambda) R.

    Args:
        kernel: width of the max-pooling in columns, an odd number; 1 disables pooling.
        threshold: cosine similarity above which two keys are near-copies.
        retain: which near-copies of each token are spared: `last` or `first` for one of them,
            `last_percent` or `first_percent` for `retain_ratio` times the number of real tokens of
            the example (at least one).
        retain_ratio: only for the two `percent` directions; the authors use 0.2.

    Raises:
        KavaError: a value is out of range, or the direction is unknown.
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
                    f"rkv_decoding: {name} is {value!r}; give a number from {least} to 1",
                    code="reasoning.bad-setting",
                    key=name,
                )
        if self.retain not in DIRECTIONS:
            raise unknown_name(
                "direction of rkv_decoding's retain",
                str(self.retain),
                DIRECTIONS,
                code="reasoning.unknown-direction",
            )

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return Z = lambda I - (1 - lambda) R, [batch, kv_heads, steps]."""
        parts = self.parts(inputs)
        return self.lam * parts["importance"] - (1 - self.lam) * parts["redundancy"]

    def parts(self, inputs: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """Return the pooled importance I and the redundancy R, each [batch, kv_heads, steps].

        R is high where a key is repeated; in `rkv` it is the other way round.
        """
        if inputs.keys.shape[2] == 0:
            none = inputs.keys.new_zeros(inputs.keys.shape[:3])
            return {"importance": none, "redundancy": none}
        # As in the R-KV paper, so that the neighbours of an important token score as high as it
        # does. Listing 1 of KaVa has no pooling.
        pooled = torch.nn.functional.max_pool1d(
            importance(inputs), self.kernel, stride=1, padding=self.kernel // 2
        )
        return {"importance": pooled, "redundancy": self.redundancy(inputs)}

    def redundancy(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return the redundancy R, [batch, kv_heads, steps]; zero at padding."""
        mask, columns = inputs.mask, inputs.keys.shape[2]
        unit = torch.nn.functional.normalize(inputs.keys.float(), dim=-1)
        unit = unit * mask[:, None, :, None]
        count = mask.sum(1).clamp(min=1)
        total = torch.zeros_like(unit[..., 0])
        column = torch.arange(columns, device=mask.device)
        for rows in column.split(ROWS):
            another = (rows[:, None] != column) & mask[:, None, None, :]
            # Without this, autocast would compute the similarities in bf16.
            with torch.autocast(unit.device.type, enabled=False):
                cosine = unit[:, :, rows] @ unit.transpose(2, 3) * another
            spared = self.exempt_copies((cosine > self.threshold) & another, count)
            total += cosine.masked_fill(spared, 0).sum(2)
        return masked_softmax(total / count[:, None, None], mask[:, None, :])

    def exempt_copies(
        self, similar: Bool[Tensor, "batch kv_heads rows steps"], count: Int[Tensor, "batch"]
    ) -> Bool[Tensor, "batch kv_heads rows steps"]:
        """Return which of its near-copies each token spares, [batch, kv_heads, rows, steps].

        Args:
            similar: [batch, kv_heads, rows, steps], true where a column is a near-copy of the row.
            count: [batch], number of real tokens of each example.
        """
        direction, _, percent = self.retain.partition("_")
        share = self.retain_ratio if percent else 0
        most = (share * count).long().clamp(min=1)
        # Number of near-copies from the start of the row up to each column, itself included.
        ahead = similar.cumsum(-1)
        if direction == "last":
            ahead = ahead[..., -1:] - ahead + similar
        return similar & (ahead <= most[:, None, None, None])


IMPLEMENTATION = RKVDecoding
