"""The latent readout in a method: logits at supervised latents only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kava.errors import KavaError
from kava.losses.latent_readout import latent_readout_loss, readout_labels
from kava.methods._base import Batch, Terms
from kava.recipe import Recipe

if TYPE_CHECKING:
    from kava.model import Reasoner


class Readout:
    """The recipe's `latent_readout`."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.settings = recipe, recipe.latent_readout
        self.weight = recipe.latent_readout.weight

    def check(self) -> None:
        """Raise a KavaError where the latents do not come in whole blocks."""
        width, latents = self.settings.width, self.recipe.num_latents
        if width and latents % width:
            raise KavaError(
                f"num_latents {latents} is not a multiple of latent_readout.width {width}: each "
                "reasoning step has a block of that many latents"
            )

    def counts(self, batch: Batch) -> Terms:
        """The number of supervised latents."""
        rows = self.labels(batch, self.recipe.num_latents)[0]
        return {"readout": torch.tensor(rows.numel(), device=rows.device)}

    def labels(self, batch: Batch, latents: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, latents and token ids, [N] each, for the first `latents` latents."""
        settings = self.settings
        return readout_labels(
            batch["steps"], batch["step_of"], latents, settings.width, settings.target
        )

    def loss(self, reasoner: Reasoner, batch: Batch, counts: Terms, states: Tensor) -> Tensor:
        """Mean CE over supervised latents, whose states are [B, M, d]."""
        rows, latents, ids = self.labels(batch, states.shape[1])
        return latent_readout_loss(reasoner.logits(states[rows, latents]), ids, counts["readout"])
