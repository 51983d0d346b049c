"""Jacobi iteration block by block: a window of blocks moves over the latents (ours).

Latents come in K blocks of c. With a window of w, block i (0, 1, ...) is computed in passes i to
i + w - 1 and is final from then on, so T = K + w - 2 passes after pass 0 suffice. In each pass,
only the blocks of the window are computed; those before it keep their keys and values, and those
after it have not begun. This is Jacobi iteration (PCCoT, arXiv:2506.18582) otherwise: the next
input of a latent is the projected state of the column before it.
"""

from dataclasses import dataclass

import torch

from kava.backbones import cache
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents._watch import report_pass
from kava.reasoning.states import LatentState, Suffix


@dataclass(frozen=True)
class Schedule:
    """Which latents are computed in which pass.

    Args:
        num_latents: M.
        width: c, the latents of a block.
        num_iterations: T. With more than K + w - 2, each block is computed in as many passes more;
            with fewer, some blocks begin together, and with fewer than w - 1, all in pass 0.
        window: w; None for all blocks in all passes, as in Jacobi iteration.
    """

    num_latents: int
    width: int
    num_iterations: int
    window: int | None

    @property
    def blocks(self) -> int:
        """Number of blocks, K."""
        return self.num_latents // self.width

    def first_pass(self, block: int) -> int:
        """Return the first pass in which a block is computed."""
        if self.window is None:
            return 0
        of_last = min(max(self.num_iterations + 1 - self.window, 0), self.blocks - 1)
        return block * of_last // max(self.blocks - 1, 1)

    def last_pass(self, block: int) -> int:
        """Return the last pass in which a block is computed."""
        return self.num_iterations - self.first_pass(self.blocks - 1) + self.first_pass(block)

    def computed(self, t: int) -> tuple[int, int]:
        """Return the first latent that is computed in pass `t`, and the one after the last."""
        begun = [block for block in range(self.blocks) if self.first_pass(block) <= t]
        final = [block for block in begun if self.last_pass(block) < t]
        return len(final) * self.width, len(begun) * self.width

    def projected(self, t: int) -> tuple[int, int]:
        """Return the first latent whose next input is made in pass `t`, and the one after the last.

        The input is made of the state of the column before. That of a block's first latent is made
        in the last pass of the block before.
        """
        begin, end = self.computed(t)
        first = max(self.computed(t + 1)[0], begin + (t > 0))
        return first, min(end + 1, self.num_latents)


def think(
    reasoner: ReasonerBase,
    question: MaskedCache,
    schedule: Schedule,
    suffix: Suffix,
    keep_all: bool = False,
) -> LatentState:
    """Compute the latents block by block.

    The arguments are described in `iterate`. The states of a pass are those of all latents: of
    final ones the last, and zeros of those that have not begun. Keys and values are kept of the
    last pass alone.
    """
    latents, residual = schedule.num_latents, reasoner.recipe.latent_update == "residual"
    batch, start = question.attention_mask.shape[0], question.columns + 1
    inputs = reasoner.special("latent").expand(batch, latents, -1)
    bot = reasoner.special("bot").expand(batch, 1, -1)
    context, reached, update = question, torch.zeros_like(inputs), torch.zeros_like(inputs)
    trajectory, states, of_bot = [inputs], [], bot
    for t in range(schedule.num_iterations + 1):
        last, (begin, end) = t == schedule.num_iterations, schedule.computed(t)
        embeds = inputs[:, begin:end] if t else torch.cat((bot, inputs[:, :end]), dim=1)
        output, after = reasoner.extend(context, embeds, suffix=suffix if last else None)
        computed = output.last_hidden_state[:, : embeds.shape[1]]
        of_bot = of_bot if t else computed[:, :1]
        fresh = computed[:, begin - end :]
        reached = torch.cat((reached[:, :begin], fresh, reached[:, end:]), dim=1)
        report_pass(reached)
        if keep_all or last:
            states.append(reached)
        if last:
            break
        # Shifted by one column, as in Jacobi iteration.
        first, to = schedule.projected(t)
        before = begin + (t > 0)  # the latent after the first computed column
        fresh = reasoner.project(computed[:, first - before : to - before])
        update = torch.cat((update[:, :first], fresh, update[:, to:]), dim=1)
        # Final latents keep the inputs that their keys and values were computed from.
        final = schedule.computed(t + 1)[0]
        changed = inputs[:, final:to] + update[:, final:to] if residual else update[:, final:to]
        inputs = torch.cat((inputs[:, :final], changed, inputs[:, to:]), dim=1)
        trajectory.append(inputs)
        context = after.crop(start + final)
    pairs = cache.key_values(after.past_key_values, start, start + latents)
    return LatentState(after, output, embeds.shape[1], [pairs], trajectory, states, of_bot)
