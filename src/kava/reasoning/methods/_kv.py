"""KV-cache distillation (L_KV): compare the latents' keys and values with the teacher's."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from kava.backbones import cache, masks, rope
from kava.backbones.attention import answer_attention
from kava.backbones.cache import KeyValues
from kava.reasoning.batching import Row
from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.losses.kv_cache import denominator, kv_cache_loss
from kava.reasoning.methods._base import Batch, LatentMethod, LossTerms, TeacherOutput
from kava.reasoning.methods._readout import Readout
from kava.reasoning.projection import KvProjection
from kava.reasoning.states import LatentState
from kava.recipe import registry
from kava.recipe.schema import Recipe


@dataclass(frozen=True)
class Selection:
    """Tokens of the chain of thought that each head of one layer keeps.

    Args:
        columns, slot_mask: [batch, kv_heads, latents], as returned by `Eviction.keep`; if latents
            come in blocks, one block after the other.
        scores: for each block, [batch, kv_heads, steps]; meaningful only at the block's own tokens.
        masks: for each block, its tokens, [batch, steps].
    """

    columns: Tensor
    slot_mask: Tensor
    scores: list[Tensor]
    masks: list[Tensor]


class KvDistillation:
    """KV-cache distillation as set by the recipe's section `kv` (KaVa, arXiv:2510.02312).

    It computes the loss terms `kv`, `kv_step_1 ... kv_step_{T+1}` and `kv_answer`.

    Args:
        recipe: its keys `kv`, `num_latents` and `short_traces` are used.
        width: c, for latents that come in blocks of c; each step of the chain of thought is then
            compressed into its own block (LOTUS with L_KV, our addition). None compresses the whole
            chain of thought, as in KaVa.
    """

    def __init__(self, recipe: Recipe, width: int | None = None):
        self.recipe, self.kv, self.width = recipe, recipe.kv, width
        eviction = recipe.kv.eviction
        self.eviction = registry.find("evictions", eviction.name)(lam=eviction.lam)
        #: The queries that `choose` needs from the teacher's forward pass.
        self.queries = self.eviction.observers if self.eviction.needs_attention else None

    def check(self, reasoner: ReasonerBase) -> None:
        """Check that the backbone supports `kv.keys`.

        Raises:
            KavaError: it does not.
        """
        if self.kv.keys == "pre_rope":
            rope.check(reasoner.lm, "kv.keys: pre_rope", "use post_rope")

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Check that the eviction method can compress every chain of thought to its budget.

        Raises:
            KavaError: it cannot.
        """
        latents = self.recipe.num_latents
        if self.width is None:
            self.eviction.check(max(len(row.steps) for row in rows), latents)
            return
        compressed = range(latents // self.width)
        sizes = [Counter(step for step in row.step_of if step in compressed) for row in rows]
        self.eviction.check(max(max(size.values(), default=0) for size in sizes), self.width)

    def modules(self, reasoner: ReasonerBase) -> nn.ModuleDict:
        """Return the projection of keys and values, if the recipe has one."""
        if self.kv.projection == "none":
            return nn.ModuleDict()
        shapes = reasoner.cache_shapes()
        return nn.ModuleDict({"kv_projection": KvProjection(self.kv.projection, shapes)})

    def counts(self, batch: Batch, latents: int | None = None) -> LossTerms:
        """Return the denominator of L_KV.

        Args:
            batch: see `kava.reasoning.batching.collate`.
            latents: number of latents in use, if not all M.
        """
        rows = batch["steps_mask"].shape[0]
        latents = self.recipe.num_latents if latents is None else latents
        if self.recipe.short_traces == "zeros":
            slots = batch["steps_mask"].new_full((rows,), latents, dtype=torch.long)
        else:
            sizes = [block.sum(1).clamp(max=size) for block, size in self.blocks(batch)]
            slots = cast(Tensor, sum(sizes))
        return {"slots": denominator(slots, self.kv.reduction)}

    def blocks(self, batch: Batch) -> list[tuple[Tensor, int]]:
        """Return the parts of the chain of thought that are compressed separately.

        Returns:
            For each part, its mask [batch, steps] and its budget.
        """
        latents = self.recipe.num_latents
        if self.width is None:
            return [(batch["steps_mask"], latents)]
        return [(batch["step_of"] == i, self.width) for i in range(latents // self.width)]

    def terms(
        self,
        reasoner: ReasonerBase,
        batch: Batch,
        counts: LossTerms,
        teacher: TeacherOutput,
        student: LatentState,
        chosen: list[Selection] | None = None,
    ) -> LossTerms:
        """Return the loss term `kv` and the terms that are only logged or added to it.

        With `kv.supervise: all`, `kv` is the mean over all T + 1 passes, and each pass is logged as
        `kv_step_i`. With `kv.answer` there is also `kv_answer`. The student may have fewer latents
        than the recipe (LOTUS in an early stage); it is then compared with the first slots.
        """
        kv, before = self.kv, student.cache.attention_mask
        end = student.cache.columns - batch["answer"].shape[1]
        first = batch["question_mask"].shape[1] + 1  # <bot> stands before the latents
        latents = student.key_values[0][0][0].shape[2]
        real = before[:, first : first + latents]
        passes = student.key_values if kv.supervise == "all" else student.key_values[-1:]
        ours = [self.student_kv_for_loss(reasoner, one, before[:, :first], real) for one in passes]
        teacher_steps = self.keys_for_loss(
            reasoner, teacher.steps, batch["question_mask"], batch["steps_mask"]
        )
        target, slot_masks = self.compress(batch, teacher, teacher_steps, chosen)
        target = [(k[:, :, :latents], v[:, :, :latents]) for k, v in target]
        slot_masks = [slots[:, :, :latents] for slots in slot_masks]

        form = {"kind": kv.loss, "layerwise_std": kv.layerwise_std, "reduction": kv.reduction}
        compare = partial(kv_cache_loss, **form)
        per_pass = [compare(one, target, slot_masks, count=counts["slots"]) for one in ours]
        terms = {"kv": torch.stack(per_pass).mean()}
        if kv.supervise == "all":
            terms.update({f"kv_step_{i + 1}": value for i, value in enumerate(per_pass)})
        if kv.answer:
            mask = batch["answer_mask"]
            pairs = cache.key_values(student.cache.past_key_values, end)
            past = torch.cat((batch["question_mask"], batch["steps_mask"]), dim=1)
            theirs = self.keys_for_loss(reasoner, teacher.answer, past, mask)
            heads = [mask[:, None].expand(-1, keys.shape[1], -1) for keys, _ in theirs]
            count = counts["rows" if kv.reduction == "row" else "answer"]
            ours = self.student_kv_for_loss(reasoner, pairs, before[:, :end], mask)
            terms["kv_answer"] = compare(ours, theirs, heads, count=count)
        return terms

    def weighted_loss(self, terms: LossTerms) -> Tensor:
        """Return alpha_2 (`kv.weight`) times the sum of `kv` and, if present, `kv_answer`."""
        return self.kv.weight * (terms["kv"] + terms.get("kv_answer", 0))

    def student_kv_for_loss(
        self, reasoner: ReasonerBase, pairs: KeyValues, past: Tensor, mask: Tensor
    ) -> KeyValues:
        """Return the student's keys and values in the form in which the loss compares them.

        Compared with `keys_for_loss`, this also applies the projection `kv.projection`.
        """
        pairs = self.keys_for_loss(reasoner, pairs, past, mask)
        if self.kv.projection == "none":
            return pairs
        return reasoner.method_modules["kv_projection"](pairs)

    def keys_for_loss(
        self, reasoner: ReasonerBase, pairs: KeyValues, past: Tensor, mask: Tensor
    ) -> KeyValues:
        """Return keys and values with the keys before or after the rotary embedding (`kv.keys`).

        Args:
            pairs: keys and values of the n new columns of each layer.
            past: [batch, past], mask of the columns before them.
            mask: [batch, columns], mask of these columns.
        """
        # The paper does not say which keys are compared. After the rotary embedding, as cached, the
        # difference of student and teacher includes that of their positions.
        if self.kv.keys == "post_rope":
            return pairs
        return rope.remove_rope(reasoner.lm, pairs, masks.positions(past, mask))

    @torch.no_grad()
    def compress(
        self,
        batch: Batch,
        teacher: TeacherOutput,
        steps: KeyValues | None = None,
        chosen: list[Selection] | None = None,
    ) -> tuple[KeyValues, list[Tensor]]:
        """Compress the keys and values of the teacher's chain of thought.

        Scores are computed from the keys as stored in the cache, even if keys before the rotary
        embedding are compared afterwards. With `short_traces: zeros`, unfilled slots contain zeros
        and count as filled.

        Args:
            steps: keys and values to select from; by default the teacher's cache.
            chosen: the result of `choose`, if it is known already.

        Returns:
            K~, V~: for each layer, [batch, kv_heads, latents, head_dim] each.
            slot_masks: for each layer, [batch, kv_heads, latents], true in filled slots.
        """
        steps = teacher.steps if steps is None else steps
        target, slot_masks = [], []
        chosen = self.choose(batch, teacher) if chosen is None else chosen
        for pair, kept in zip(steps, chosen, strict=True):
            target.append(tuple(self.gather_kept(states, kept) for states in pair))
            # The paper does not say what a chain of thought shorter than M is compared with.
            real = kept.slot_mask
            slot_masks.append(real if self.recipe.short_traces == "mask" else torch.ones_like(real))
        return target, slot_masks

    @torch.no_grad()
    def choose(self, batch: Batch, teacher: TeacherOutput) -> list[Selection]:
        """Select the tokens that each head of each layer keeps.

        Raises:
            KavaError: the eviction method cannot compress this chain of thought to its budget.
        """
        blocks, chosen = self.blocks(batch), []
        if self.width is None:
            self.eviction.check(batch["steps_mask"].shape[1], self.recipe.num_latents)
        # The sizes of the blocks are on the GPU and reading them synchronizes with it, so this is
        # skipped unless the eviction method overrides `check`.
        elif type(self.eviction).check is not Eviction.check:
            for mask, budget in blocks:
                self.eviction.check(int(mask.sum(1).amax(0)), budget)
        masks_of_blocks = [mask for mask, _ in blocks]
        inputs_of, scores_of = [], []
        for layer in range(len(teacher.steps)):
            inputs = [self.eviction_inputs(batch, teacher, layer, mask) for mask in masks_of_blocks]
            scores_of.append([self.eviction.score(one) for one in inputs])
            # Without the attention, so that only that of one layer is in memory at a time.
            inputs_of.append([replace(one, attention=None) for one in inputs])
        if self.kv.eviction.shared != "none":
            scores_of = _share(scores_of, self.kv.eviction.shared)
        for inputs, scores in zip(inputs_of, scores_of, strict=True):
            kept = [
                self.eviction.select(score, scored, budget)
                for score, scored, (_, budget) in zip(scores, inputs, blocks, strict=True)
            ]
            columns, slot_mask = (torch.cat(part, dim=-1) for part in zip(*kept, strict=True))
            chosen.append(Selection(columns, slot_mask, scores, masks_of_blocks))
        return chosen

    def gather_kept(self, states: Tensor, selection: Selection) -> Tensor:
        """Return the keys or values of each slot; unfilled slots are zero.

        Args:
            states: [batch, kv_heads, steps, head_dim], keys or values of the chain of thought.
            selection: the tokens that were kept.

        Returns:
            [batch, kv_heads, latents, head_dim].
        """
        budget = selection.columns.shape[2] // len(selection.masks)
        blocks = zip(
            selection.columns.split(budget, 2),
            selection.slot_mask.split(budget, 2),
            selection.masks,
            strict=True,
        )
        parts = [self.eviction.gather(states, *block) for block in blocks]
        return torch.cat(parts, dim=2)

    def eviction_inputs(
        self, batch: Batch, teacher: TeacherOutput, layer: int, mask: Tensor
    ) -> EvictionInputs:
        """Return the inputs of the eviction method for one layer."""
        keys, attention, record = teacher.steps[layer][0], None, teacher.queries
        observing = batch["answer_mask"]
        if record is not None and self.eviction.needs_attention:
            later = self.eviction.observers == "later_steps"
            if later:
                observing = torch.cat((batch["steps_mask"], observing), dim=1)
            attention = answer_attention(
                record.queries[layer][:, :, -observing.shape[1] :],
                keys,
                # What later steps attend to is compared among all tokens, also if `mask` is a part.
                visible_steps(
                    batch, batch["steps_mask"] if later else mask, record.window[layer], later
                ),
                scaling=record.scaling[layer],
                softcap=record.softcap[layer],
            )
            if later:
                attention = attention * _in_later_step(batch)[:, None]
        return EvictionInputs(keys, mask, attention, observing, tokens=batch["steps"])


def _share(scores: list[list[Tensor]], by: str) -> list[list[Tensor]]:
    """Give all layers and heads the mean or the largest (`by: max`) of their scores.

    Args:
        scores: for each layer and block, [batch, kv_heads, steps].
    """
    of_blocks = []
    for layers in zip(*scores, strict=True):
        every = torch.stack(layers, dim=1)  # [batch, layers, kv_heads, steps]
        of_blocks.append(every.amax((1, 2)) if by == "max" else every.mean((1, 2)))
    return [
        [one[:, None].expand_as(own) for one, own in zip(of_blocks, layer, strict=True)]
        for layer in scores
    ]


def visible_steps(
    batch: Batch, mask: Tensor, window: int | None, from_steps: bool = False
) -> Tensor:
    """Return a mask of the reasoning tokens that each answer token can attend to.

    Args:
        mask: [batch, steps], the reasoning tokens to consider.
        window: size of the layer's sliding window, None if it has none.
        from_steps: also for each reasoning token; these come first.

    Returns:
        [batch, answer, steps], or [batch, steps + answer, steps]; `mask` itself if every answer
        token can attend to all of them.
    """
    if window is None and not from_steps:
        return mask
    before = torch.cat((batch["question_mask"], batch["steps_mask"]), dim=1)
    observing = masks.positions(before, batch["answer_mask"])
    steps = masks.positions(batch["question_mask"], batch["steps_mask"])
    visible = mask[:, None]
    if from_steps:
        observing = torch.cat((steps, observing), dim=1)
        visible = visible & (steps[:, None] <= observing[:, :, None])
    return visible if window is None else visible & masks.within_window(observing, steps, window)


def _in_later_step(batch: Batch) -> Tensor:
    """Return whether each token belongs to a later step than each reasoning token, or the answer.

    Returns:
        [batch, steps + answer, steps]; false where the first of the two is padding.
    """
    steps, after = batch["step_of"], batch["answer_mask"].long()
    # The answer counts as a step after the last one; padding of either has no step.
    number = torch.cat((steps, after * (steps.shape[1] + 1) - 1), dim=1)
    return number[:, :, None] > steps[:, None]


class KvMethod(LatentMethod):
    """Base class of latent methods with L_KV, which is computed if `kv.weight` is above 0."""

    def __init__(self, recipe: Recipe, width: int | None = None):
        super().__init__(recipe)
        self.kv, self.readout = KvDistillation(recipe, width), Readout(recipe)
        self.distils = recipe.kv.weight > 0

    def check(self, reasoner: ReasonerBase) -> None:
        """Check that the backbone supports `kv.keys`, and that the latents come in whole blocks.

        Raises:
            KavaError: it does not, or they do not.
        """
        if self.distils:
            self.kv.check(reasoner)
        self.readout.check()

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Check that no chain of thought, or no step of one, is too long for the eviction method.

        Raises:
            KavaError: one is too long.
        """
        if self.distils:
            self.kv.check_rows(rows)

    def modules(self, reasoner: ReasonerBase) -> nn.ModuleDict:
        """Return the projection of keys and values, if there is one."""
        return self.kv.modules(reasoner) if self.distils else nn.ModuleDict()
