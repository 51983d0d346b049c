"""Aligned KaVa (ours): each latent stands for one token of the chain of thought, step by step.

Under KaVa, each layer and head keeps other tokens, so that what a latent has to match is hard to
foresee, and only the last pass is supervised (docs/log.md). Here, latents come in blocks of c
(`latent_readout.width`), one for each reasoning step; all layers and heads keep the same c tokens
of the step, by default the last ones, and a latent matches the keys and values of its token and
predicts it. Step i (1, 2, ...) reads the result of the one before it, so that its block can be
right after i passes: from pass i on it should predict its tokens. It is computed in a window of w
passes, by default three: one to begin, one to predict its tokens, and one to compute its keys and
values from what it predicted. Then it is final.

L = CE_student + w_t CE_teacher + a1 L_CODI + a2 L_KV + a3 CE(kept token | latent)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kava.errors import KavaError
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents import windowed
from kava.reasoning.latents.windowed import Ending, Schedule
from kava.reasoning.losses.latent_readout import latent_readout_loss
from kava.reasoning.methods._base import Batch, LossTerms, TeacherOutput, Uniform
from kava.reasoning.methods._kv import KvDistillation, Selection
from kava.reasoning.methods._readout import states_read
from kava.reasoning.methods._work import ForwardPass, Work, consecutive_passes
from kava.reasoning.methods.kava import KaVa
from kava.reasoning.methods.pccot import PCCoT
from kava.reasoning.states import LatentState, Suffix
from kava.recipe.schema import Recipe, Section

#: What a label of the readout consists of, each an entry of the batch.
READOUT = ("passes", "rows", "latents")


class AlignedOptions(Section):
    """Options of Aligned KaVa.

    window: w, the number of passes in which each block is computed; null for all T + 1 passes, as
        in Jacobi iteration. With K blocks, T (`num_iterations`) should be K + w - 2; with fewer
        iterations, some blocks begin together, and with more, each is computed longer.
    stop: end the latents with the last step. The state of each block's last latent then also
        predicts what follows: the first token of the next step, or that of "The answer is:". At
        inference, this ends the latents: a question with s steps takes s + w - 2 iterations.
    readout_after: in which passes the latents of step i should predict their tokens. `own_pass`: in
        pass i and all after it in which they are computed. `last_pass`: in the last of them alone.
    """

    window: int | None = Field(default=3, ge=1)
    stop: bool = False
    readout_after: Literal["own_pass", "last_pass"] = "own_pass"


class Aligned(KaVa):
    """KaVa whose latents stand for the same tokens in all layers and heads, and predict them.

    `latent_readout.target` is `own` or `slot` for the kept token itself, or `next` for the token
    that follows it in the chain of thought (the answer prompt after the last one).
    """

    label = "Aligned KaVa"
    paper = None
    Options = AlignedOptions
    defaults = {
        "kv": {"eviction": {"name": "crop_left", "shared": "max"}},
        "latent_readout": {"weight": 1.0, "target": "slot"},
    }

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.kv = KvDistillation(recipe, recipe.latent_readout.width)
        self.queries = self.kv.queries  # the tokens are chosen even if L_KV has no weight
        self.keeps_passes = self.keeps_passes or self.reads
        self.finds_iterations = self.options.window is None
        self.fixed_size = not self.options.stop

    @property
    def block(self) -> int:
        """Number of latents for each reasoning step, c; 1 if the recipe sets none."""
        return self.recipe.latent_readout.width or 1

    @property
    def width(self) -> int:
        """Number of latents in a block, c; all M if the recipe sets none."""
        return self.recipe.latent_readout.width or self.recipe.num_latents

    def schedule(self, num_iterations: int) -> Schedule:
        """Return which latents are computed in which pass."""
        return Schedule(self.recipe.num_latents, self.width, num_iterations, self.options.window)

    def latents(self, reasoner, question, suffix, num_iterations, keep_all=False) -> LatentState:
        """Generate the latents block by block, or all in parallel without a window."""
        if self.options.window is None:
            return super().latents(reasoner, question, suffix, num_iterations, keep_all)
        schedule, ending = self.schedule(num_iterations), self.ending(reasoner, None)
        return windowed.think(reasoner, question, schedule, suffix, keep_all, ending)

    def student(self, reasoner, question, batch: Batch, suffix: Suffix) -> LatentState:
        """Generate the latents of a training batch, as many as its steps need with `stop`."""
        if not self.options.stop:
            return super().student(reasoner, question, batch, suffix)
        schedule = self.schedule(batch.get("iterations", self.recipe.num_iterations))
        ending = self.ending(reasoner, batch["sizes"])
        return windowed.think(reasoner, question, schedule, suffix, self.keeps_passes, ending)

    def ending(self, reasoner, sizes: Tensor | None) -> Ending | None:
        """Return where the latents end; None if all examples have all M.

        Args:
            sizes: [batch], number of latents of each example, if it is known.
        """
        if not self.options.stop:
            return None
        first = reasoner.encoder.prompt[0]
        return Ending(sizes, lambda states: reasoner.logits(states).argmax(-1) == first)

    def latent_calls(self, question, num_iterations, suffix) -> list[ForwardPass]:
        """Return the forward passes, each over the blocks of the window.

        With `stop`, these are those of a question with as many steps as there are blocks.
        """
        schedule, calls = self.schedule(num_iterations), []
        for t in range(num_iterations + 1):
            begin, end = schedule.computed(t)
            columns = end - begin + (suffix if t == num_iterations else torch.zeros_like(suffix))
            if t:
                calls.append(ForwardPass(columns, question + 1 + begin))
            else:
                calls += consecutive_passes(1 + columns, after=question)
        return calls

    def projected_latents(self, num_iterations: int) -> int:
        """Return how many latent states of one example pass through the projection P."""
        if self.options.window is None or self.recipe.projection == "none":
            return super().projected_latents(num_iterations)
        made = [self.schedule(num_iterations).projected(t) for t in range(num_iterations)]
        return sum(to - first for first, to in made)

    def check(self, reasoner: ReasonerBase) -> None:
        """Check what KaVa checks, that all heads keep the same tokens, and the supervised passes.

        Raises:
            KavaError: heads keep different tokens, or passes that are not computed are supervised.
        """
        super().check(reasoner)
        if self.options.window and self.distils and self.recipe.kv.supervise == "all":
            raise KavaError(
                "aligned: kv.supervise is all, but with a window latents are not computed in all "
                "passes; set it to last, or method_options.window to null",
                code="reasoning.supervised-passes",
                key="kv.supervise",
            )
        if self.options.stop and not (
            (self.options.window or 0) >= 3
            and self.recipe.latent_readout.width
            and self.recipe.latent_readout.target == "slot"
            and self.reads
        ):
            raise KavaError(
                "aligned: method_options.stop needs a window of 3 passes or more, and "
                "latent_readout with a weight, a width and slot as the target",
                code="reasoning.cannot-stop",
                key="method_options.stop",
            )
        if self.recipe.kv.eviction.shared == "none":
            raise KavaError(
                "aligned: kv.eviction.shared is none, but a latent can only predict its token if "
                "all layers and heads keep the same one; set it to max or mean",
                code="reasoning.not-shared",
                key="kv.eviction.shared",
            )

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch with what PCCoT draws for it, and which latents predict in which pass.

        These are `readout_passes`, `readout_rows` and `readout_latents`, [labels] each; the tokens
        that they stand for follow from the teacher.
        """
        batch = PCCoT.apply_stage(self, batch, epoch, uniform)
        filled = [
            torch.arange(size, device=mask.device) < mask.sum(1, keepdim=True)
            for mask, size in self.kv.blocks(batch)
        ]
        rows, latents = torch.cat(filled, dim=1).nonzero(as_tuple=True)
        iterations = batch.get("iterations", self.recipe.num_iterations)  # T may be drawn
        schedule, each = self.schedule(iterations), self.options.readout_after == "own_pass"
        lasts = [schedule.last_pass(block) for block in range(schedule.blocks)]
        firsts = [min(block + 1, last) for block, last in enumerate(lasts)] if each else lasts
        first, last = torch.tensor((firsts, lasts), device=rows.device)[:, latents // self.width]
        passes = torch.arange(iterations + 1, device=rows.device)[:, None]
        passes, labels = ((first <= passes) & (passes <= last)).nonzero(as_tuple=True)
        batch = {
            **batch,
            "readout_passes": passes,
            "readout_rows": rows[labels],
            "readout_latents": latents[labels],
        }
        return self.add_ends(batch, firsts, lasts) if self.options.stop else batch

    def add_ends(self, batch: Batch, firsts: Sequence[int], lasts: Sequence[int]) -> Batch:
        """Return the batch with labels for what follows each block but the last.

        The batch gains `sizes`, [batch], the number of latents of each example. The state before a
        latent that the example does not have should predict the answer prompt.

        Args:
            firsts, lasts: for each block, the first and last pass in which it is supervised.
        """
        blocks = (batch["step_of"].amax(1) + 1).clamp(1, len(lasts))
        parts: list[list[Tensor]] = [[batch[f"readout_{name}"]] for name in READOUT]
        for block, passes in enumerate(zip(firsts[:-1], lasts[:-1], strict=True)):
            rows = (blocks > block).nonzero()[:, 0]
            for t in range(passes[0], passes[1] + 1):
                at = torch.full_like(rows, (block + 1) * self.width)
                for part, more in zip(parts, (torch.full_like(rows, t), rows, at), strict=True):
                    part.append(more)
        named = zip(READOUT, parts, strict=True)
        labels = {f"readout_{name}": torch.cat(part) for name, part in named}
        return {**batch, **labels, "sizes": blocks * self.width}

    def counts(self, batch: Batch) -> LossTerms:
        """Return the denominators of PCCoT, of L_KV and of the readout."""
        found = PCCoT.counts(self, batch)
        if self.distils:
            found |= self.kv.counts(batch)
        if self.reads:
            rows = batch["readout_rows"]
            found["readout"] = torch.full((), rows.numel(), dtype=torch.long, device=rows.device)
        return found

    def work(  # pyright: ignore[reportIncompatibleMethodOverride] unlike KaVa's, it may be unknown
        self, batch: Batch
    ) -> Work | None:
        """Return the minimum work of PCCoT plus the logits of the kept tokens, if it is known."""
        if self.options.stop:
            return None  # each example has its own number of latents
        least = PCCoT.work(self, batch)
        if not self.reads:
            return least
        return replace(least, labels=least.labels + batch["readout_rows"].numel())

    def combine(
        self,
        reasoner,
        batch: Batch,
        counts: LossTerms,
        teacher: TeacherOutput,
        student: LatentState,
    ) -> LossTerms:
        """Return the terms of PCCoT, L_KV and the readout of the kept tokens, if weighted."""
        terms = PCCoT.combine(self, reasoner, batch, counts, teacher, student)
        chosen = self.kv.choose(batch, teacher)
        if self.distils:
            terms |= self.kv.terms(reasoner, batch, counts, teacher, student, chosen)
            terms["loss"] = terms["loss"] + self.kv.weighted_loss(terms)
        if self.reads:
            target = self.recipe.latent_readout.target
            ids = kept_tokens(batch, chosen[0], target == "next")
            if self.options.stop:
                beyond = batch["readout_latents"] >= batch["sizes"][batch["readout_rows"]]
                ids = ids.masked_fill(beyond, reasoner.encoder.prompt[0])
            every = range(len(student.states))
            states = torch.stack([states_read(student, t, target) for t in every])
            places = [batch[f"readout_{name}"] for name in READOUT]
            read = states[tuple(places)]
            terms["readout"] = latent_readout_loss(reasoner, read, ids, counts["readout"])
            terms["loss"] = terms["loss"] + self.readout.weight * terms["readout"]
        return terms


def kept_tokens(batch: Batch, kept: Selection, following: bool) -> Tensor:
    """Return the token id that each latent should predict, [labels].

    Args:
        batch: a batch from `Aligned.apply_stage`.
        kept: the tokens that are kept, the same for all heads.
        following: whether the label is the token after the kept one.
    """
    rows = batch["readout_rows"]
    columns = kept.columns[rows, 0, batch["readout_latents"]]
    if not following:
        return batch["steps"][rows, columns]
    # Padding stands between the last step and the answer.
    columns = torch.where(
        columns + 1 < batch["steps_mask"].sum(1)[rows], columns + 1, batch["steps"].shape[1]
    )
    return torch.cat((batch["steps"], batch["answer"]), dim=1)[rows, columns]


IMPLEMENTATION = Aligned
