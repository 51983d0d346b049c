"""KaVa: PCCoT whose latents also match the teacher's compressed key/value cache.

L = CE_student + w_t CE_teacher + a1 L_CODI + a2 L_KV
"""

from __future__ import annotations

import torch
from torch import Tensor

from kava import batching, registry, rotary
from kava.attention import answer_attention
from kava.cache import KeyValues
from kava.evictions._base import Scored, gather
from kava.latents._state import LatentState
from kava.losses.kv_cache import kv_cache_loss
from kava.methods._base import Batch, Terms, Written
from kava.methods.pccot import PCCoT
from kava.recipe import Recipe


class KaVa(PCCoT):
    """Kuzina, Pioro, Whatmough, Bejnordi, arXiv:2510.02312."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.eviction = registry.find("evictions", recipe.kv.eviction.name)(
            lam=recipe.kv.eviction.lam
        )
        self.needs_queries = self.eviction.needs_attention

    def check(self, reasoner) -> None:
        """Raise a KavaError where the backbone does not fit the recipe."""
        if self.recipe.kv.keys == "pre_rope":
            rotary.check(reasoner.lm)

    def combine(
        self, reasoner, batch: Batch, counts: Tensor, teacher: Written, student: LatentState
    ) -> Terms:
        """PCCoT's terms and L_KV; with `kv.supervise: all`, its mean over all T + 1 passes."""
        terms = super().combine(reasoner, batch, counts, teacher, student)
        kv = self.recipe.kv
        latents, steps = student.key_values, teacher.steps
        if kv.keys == "pre_rope":
            latents, steps = self.turned_back(reasoner, batch, latents, steps)
        target, filled = self.compress(batch, teacher, steps)
        per_pass = [
            kv_cache_loss(one, target, filled, kv.loss, kv.layerwise_std, counts[3])
            for one in latents
        ]
        terms["kv"] = torch.stack(per_pass).mean()
        if kv.supervise == "all":
            terms.update({f"kv_step_{i + 1}": value for i, value in enumerate(per_pass)})
        terms["loss"] = terms["loss"] + kv.weight * terms["kv"]
        return terms

    def turned_back(
        self, reasoner, batch: Batch, latents: list[KeyValues], steps: KeyValues
    ) -> tuple[list[KeyValues], KeyValues]:
        """Keys of latents and written steps without their rotation."""
        past, model = batch["question_mask"], reasoner.lm
        written = batching.positions(past, batch["steps_mask"])
        slots = torch.arange(self.recipe.num_latents, device=past.device)
        thought = past.sum(1, keepdim=True) + 1 + slots  # <bot> stands before the latents
        return (
            [rotary.turned_back(model, one, thought) for one in latents],
            rotary.turned_back(model, steps, written),
        )

    @torch.no_grad()
    def compress(
        self, batch: Batch, teacher: Written, steps: KeyValues | None = None
    ) -> tuple[KeyValues, list[Tensor]]:
        """K~, V~ [B, H, M, D] and filled slots [B, H, M], per layer, gathered from `steps`
        (the teacher's cache if not given).

        Scores are of the keys as the cache holds them, whichever are compared afterwards.
        With `short_traces: zeros`, unfilled slots hold zeros and count as filled.
        """
        steps = teacher.steps if steps is None else steps
        budget = self.recipe.num_latents
        self.eviction.check(batch["steps"].shape[1], budget)
        target, filled = [], []
        for layer, pair in enumerate(steps):
            scored = self.scored(batch, teacher, layer)
            columns, real = self.eviction.keep(scored, budget)
            target.append(tuple(gather(s, columns) * real[..., None] for s in pair))
            filled.append(real if self.recipe.short_traces == "mask" else torch.ones_like(real))
        return target, filled

    def scored(self, batch: Batch, teacher: Written, layer: int) -> Scored:
        """What the compressor sees of one layer."""
        keys, attention, record = teacher.steps[layer][0], None, teacher.queries
        if record is not None:
            attention = answer_attention(
                record.queries[layer],
                keys,
                steps_seen(batch, record.window[layer]),
                record.scaling[layer],
                record.softcap[layer],
            )
        return Scored(keys, batch["steps_mask"], attention, batch["answer_mask"])


def steps_seen(batch: Batch, window: int | None) -> Tensor:
    """Reasoning tokens [B, A, C] that each answer token sees; [B, C] where it sees all of them."""
    if window is None:
        return batch["steps_mask"]
    before = torch.cat((batch["question_mask"], batch["steps_mask"]), dim=1)
    answer = batching.positions(before, batch["answer_mask"])
    steps = batching.positions(batch["question_mask"], batch["steps_mask"])
    return batching.within_window(answer, steps, window) & batch["steps_mask"][:, None]


IMPLEMENTATION = KaVa
