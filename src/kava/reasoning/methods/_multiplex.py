"""Multiplexed tokens as part of a method: each latent predicts a span of the chain of thought."""

from dataclasses import fields

import torch
from torch import Tensor

from kava.reasoning.interface import ReasonerBase
from kava.reasoning.losses.multiplex import Spans, cut_into_spans, multiplex_loss, random_cuts
from kava.reasoning.methods._base import Batch, LossTerms, Uniform
from kava.reasoning.methods._readout import states_read
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe


class MultiplexLoss:
    """The loss of MUX as set by the recipe's section `multiplex` (arXiv:2607.18264)."""

    def __init__(self, recipe: Recipe):
        self.settings = recipe.multiplex
        self.weight = recipe.multiplex.weight
        self.enabled = recipe.multiplex.weight > 0

    def add_spans(self, batch: Batch, source: Batch, latents: int, uniform: Uniform) -> Batch:
        """Return the batch with the spans of the latents added as `multiplex_*`, see `Spans`.

        Args:
            batch: the batch to which the spans are added.
            source: the batch whose chain of thought the latents should predict.
            latents: number of latents in use.
            uniform: source of the random cuts.
        """
        if not self.enabled:
            return batch
        mask = source["step_of"] >= 0
        # In stage 0 of LOTUS there are no latents. A mask without tokens gives no spans.
        mask = mask if latents else torch.zeros_like(mask)
        cuts = random_cuts(mask.sum(1).cpu(), latents, uniform)
        spans = cut_into_spans(source["steps"], mask, cuts, self.settings.decay)
        return {**batch, **{f"multiplex_{f.name}": getattr(spans, f.name) for f in fields(Spans)}}

    def counts(self, batch: Batch) -> LossTerms:
        """Return the number of spans, the denominator of the loss."""
        if not self.enabled:
            return {}
        rows = batch["multiplex_rows"]
        return {"spans": torch.full((), rows.numel(), dtype=torch.long, device=rows.device)}

    def labels(self, batch: Batch) -> int:
        """Return the number of states whose logits the loss needs."""
        return batch["multiplex_rows"].numel() if self.enabled else 0

    def terms(
        self, reasoner: ReasonerBase, batch: Batch, counts: LossTerms, state: LatentState
    ) -> tuple[LossTerms, Tensor | float]:
        """Return the loss term `multiplex`, and its weighted value; nothing and 0 if not used.

        Args:
            state: the student's latents.
        """
        if not self.enabled:
            return {}, 0.0
        spans = Spans(*(batch[f"multiplex_{f.name}"] for f in fields(Spans)))
        states = states_read(state, -1, self.settings.target)
        read = states[spans.rows, spans.latents]
        loss = multiplex_loss(reasoner, read, spans, self.settings.tau, counts["spans"])
        return {"multiplex": loss}, self.weight * loss
