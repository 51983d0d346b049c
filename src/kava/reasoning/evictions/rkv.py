"""R-KV eviction as used by KaVa: importance to the answer and redundancy among keys.

Source: KaVa, arXiv:2510.02312, Listing 1. `rkv_decoding` is the form of the R-KV paper.
"""

from typing import cast

import torch
from torch import Tensor

from kava.backbones.attention import masked_softmax
from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


def importance(inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
    """Return the importance I of each token, [batch, kv_heads, steps].

    I is the mean of the attention A over the answer tokens (KaVa, Listing 1).
    """
    attention = cast(Tensor, inputs.attention)  # never None if `needs_attention` is true
    # The paper does not say which tokens belong to the answer. In training, they are all from "The
    # answer is:" to EOS (`teacher_forward`).
    weight = inputs.answer_mask[:, None, :, None].to(attention.dtype)
    count = weight.sum(2).clamp(min=1)
    return (attention * weight).sum(2) / count


def redundancy(inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
    """Return R for each token, [batch, kv_heads, steps]; high where a key is unlike the others.

    R = softmax over the C reasoning tokens of (- sum_j c_ij / N_C) (KaVa, Listing 1), where c is
    the cosine similarity of the keys, with 0 on the diagonal and at padding, and N_C is the number
    of real tokens. The row sums of c need no C x C matrix: for keys of unit length,
    sum_j c_ij = k_i . (sum_j k_j) - k_i . k_i.
    """
    real = inputs.mask[:, None, :, None]
    unit = torch.nn.functional.normalize(inputs.keys.float(), dim=-1) * real
    total = unit.sum(2, keepdim=True)
    similarity = (unit * total).sum(-1) - (unit * unit).sum(-1)
    count = inputs.mask.sum(1).clamp(min=1)[:, None, None]
    return masked_softmax(-similarity / count, inputs.mask[:, None, :])


class RKV(Eviction):
    """Keep tokens that matter to the answer and repeat no other: S = lambda I + (1 - lambda) R.

    Source: KaVa, arXiv:2510.02312, Listing 1.
    """

    needs_attention = True

    def parts(self, inputs: EvictionInputs) -> dict[str, Float[Tensor, "batch kv_heads steps"]]:
        """Return the importance I and the redundancy term R, each [batch, kv_heads, steps]."""
        return {"importance": importance(inputs), "redundancy": redundancy(inputs)}

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return S = lambda I + (1 - lambda) R, [batch, kv_heads, steps]."""
        parts = self.parts(inputs)
        # A sum, where the R-KV paper has a difference: R of Listing 1 is already negated, and high
        # for tokens that repeat no other.
        return self.lam * parts["importance"] + (1 - self.lam) * parts["redundancy"]


IMPLEMENTATION = RKV
