"""Latent readout as part of a method; logits are computed at supervised latents only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kava.errors import KavaError
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.losses.latent_readout import latent_readout_loss, readout_labels
from kava.reasoning.methods._base import Batch, LossTerms
from kava.reasoning.states import LatentState
from kava.recipe.schema import Recipe


class Readout:
    """Latent readout as set by the recipe's section `latent_readout` (LOTUS, arXiv:2606.31779)."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.settings = recipe, recipe.latent_readout
        self.weight = recipe.latent_readout.weight

    def check(self) -> None:
        """Check that `num_latents` is a multiple of the block width.

        Raises:
            KavaError: it is not.
        """
        width, latents = self.settings.width, self.recipe.num_latents
        if width and latents % width:
            raise KavaError(
                f"num_latents {latents} is not a multiple of latent_readout.width {width}: each "
                "reasoning step has a block of that many latents",
                code="reasoning.uneven-blocks",
                key="num_latents",
            )

    def add_targets(self, batch: Batch, source: Batch, latents: int) -> Batch:
        """Return the batch with the labels of the latents added.

        Args:
            batch: the batch to which the labels are added.
            source: the batch whose chain of thought the latents should predict.
            latents: number of latents in use.

        Returns:
            The batch with `readout_rows`, `readout_latents` and `readout_ids`, [labels] each.
        """
        settings = self.settings
        labels = readout_labels(
            source["steps"],
            source["step_of"],
            latents,
            width=settings.width,
            target=settings.target,
        )
        names = ("readout_rows", "readout_latents", "readout_ids")
        return {**batch, **dict(zip(names, labels, strict=True))}

    def counts(self, batch: Batch) -> LossTerms:
        """Return the number of supervised latents, the denominator of the loss."""
        ids = batch["readout_ids"]
        return {"readout": torch.full((), ids.numel(), dtype=torch.long, device=ids.device)}

    def loss(
        self,
        reasoner: ReasonerBase,
        batch: Batch,
        counts: LossTerms,
        state: LatentState,
        passes: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy over supervised latents.

        Args:
            state: the student's latents; with `passes`, the states of all passes.
            passes: for each block of latents, the pass whose states are read; by default, the last
                pass for all.
        """
        rows, latents = batch["readout_rows"], batch["readout_latents"]
        if passes is None:
            read = states_read(state, -1, self.settings.target)[rows, latents]
        else:
            every = range(len(state.states))
            states = torch.stack([states_read(state, t, self.settings.target) for t in every])
            of_block = torch.tensor(passes, dtype=torch.long, device=rows.device)
            read = states[of_block[latents // self.settings.width], rows, latents]
        return latent_readout_loss(reasoner, read, batch["readout_ids"], counts["readout"])


def states_read(state: LatentState, t: int, target: str) -> Tensor:
    """Return the states that the head reads for each latent in pass `t`.

    These are those of the latents, or with `slot` as the target those of the positions before them.

    Returns:
        [batch, latents, hidden].
    """
    states = state.states[t]
    # The equation of LOTUS reads the state of the latent itself (`own`). The authors' code, and so
    # their weights, reads the state before it, as a language model predicts its next token.
    if target != "slot":
        return states
    return torch.cat((state.bot, states), dim=1)[:, : states.shape[1]]
