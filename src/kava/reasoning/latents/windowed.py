"""Jacobi iteration block by block: a window of blocks moves over the latents (ours).

Latents come in K blocks of c. With a window of w, block i (0, 1, ...) is computed in passes i to
i + w - 1 and is final from then on, so T = K + w - 2 passes after pass 0 suffice. In each pass,
only the blocks of the window are computed; those before it keep their keys and values, and those
after it have not begun. This is Jacobi iteration (PCCoT, arXiv:2506.18582) otherwise: the next
input of a latent is the projected state of the column before it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from kava.backbones import cache
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.latents._watch import report_pass
from kava.reasoning.states import LatentState, Suffix
from kava.shapes import Bool, Float, Int


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


@dataclass(frozen=True)
class Ending:
    """Where the latents end, if each example has as many blocks as it needs.

    Args:
        sizes: [batch], the number of latents of each example; None if they are to be found.
        ends: whether the latents end after a block, by the state of its last latent, [batch,
            hidden] to [batch]. Asked after the second pass of each block but the last.
    """

    sizes: Int[Tensor, "batch"] | None
    ends: Callable[[Float[Tensor, "batch hidden"]], Bool[Tensor, "batch"]]


def think(
    reasoner: ReasonerBase,
    question: MaskedCache,
    schedule: Schedule,
    suffix: Suffix,
    keep_all: bool = False,
    ending: Ending | None = None,
) -> LatentState:
    """Compute the latents block by block.

    The other arguments are described in `iterate`. The states of a pass are those of all latents:
    of final ones the last, and zeros of those that have not begun. Keys and values are kept of the
    last pass alone.

    With an `ending`, what follows an example's latents attends to its own ones alone. If their
    number is to be found, the passes end with the example that needs most, and there are as many
    latents as it needs.

    Raises:
        ValueError: `num_iterations` is negative.
    """
    latents, width = schedule.num_latents, schedule.width
    residual = reasoner.recipe.latent_update == "residual"
    batch, start = question.attention_mask.shape[0], question.columns + 1
    inputs = reasoner.special("latent").expand(batch, latents, -1)
    bot = reasoner.special("bot").expand(batch, 1, -1)
    context, reached, update = question, torch.zeros_like(inputs), torch.zeros_like(inputs)
    trajectory, states, of_bot = [inputs], [], bot
    sizes = None if ending is None else ending.sizes
    search = None
    if ending is not None and sizes is None:
        search = _Search(schedule, batch, ending.ends)
    last = schedule.num_iterations
    for t in range(schedule.num_iterations + 1):
        begin, end = schedule.computed(t)
        if t == last and search is not None:
            blocks = search.found()
            latents, sizes = max(blocks) * width, torch.tensor(blocks, device=bot.device) * width
            end, inputs, reached = min(end, latents), inputs[:, :latents], reached[:, :latents]
        embeds = inputs[:, begin:end] if t else torch.cat((bot, inputs[:, :end]), dim=1)
        real = None
        if sizes is not None:
            real = torch.arange(end, device=bot.device) < sizes[:, None]
            seen = context.attention_mask.clone()
            seen[:, start:] &= real[:, :begin]
            context = replace(context, attention_mask=seen)
            real = real[:, begin:] if t else pad(real, (1, 0), value=True)
        output, after = reasoner.extend(context, embeds, real, suffix=suffix if t == last else None)
        computed = output.last_hidden_state[:, : embeds.shape[1]]
        of_bot = of_bot if t else computed[:, :1]
        fresh = computed[:, begin - end :]
        reached = torch.cat((reached[:, :begin], fresh, reached[:, end:]), dim=1)
        report_pass(reached)
        if keep_all or t == last:
            states.append(reached)
        if t == last:
            return LatentState(
                cache=after,
                output=output,
                suffix_start=embeds.shape[1],
                key_values=[cache.key_values(after.past_key_values, start, start + latents)],
                inputs=[one[:, :latents] for one in trajectory],
                states=[one[:, :latents] for one in states],
                bot=of_bot,
                iterations=None if search is None else torch.tensor(search.iterations()),
            )
        if search is not None:
            last = search.last_pass(t, reached)
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
    raise ValueError(f"num_iterations must be 0 or more, not {schedule.num_iterations}")


class _Search:
    """The number of blocks of each example, found while its latents are computed."""

    def __init__(self, schedule: Schedule, batch: int, ends: Callable[[Tensor], Tensor]):
        self.schedule, self.ends = schedule, ends
        #: For each example, the number of its blocks, 0 while it is not known.
        self.blocks = [0] * batch

    def last_pass(self, t: int, states: Tensor) -> int:
        """Look at the states of pass `t`; return the last pass, as far as it is known."""
        schedule, asked = self.schedule, []
        for number in range(1, schedule.blocks):
            asked.append(schedule.first_pass(number - 1) + 1)
            if asked[-1] == t:
                ended = self.ends(states[:, number * schedule.width - 1]).tolist()
                pairs = zip(self.blocks, ended, strict=True)
                self.blocks = [known or (number if now else 0) for known, now in pairs]
        if all(self.blocks) or t >= max(asked, default=0):
            return max(self.iterations())
        return schedule.num_iterations

    def found(self) -> list[int]:
        """Return the number of blocks of each example, K for those that did not end before."""
        return [known or self.schedule.blocks for known in self.blocks]

    def iterations(self) -> list[int]:
        """Return T of each example."""
        return [self.schedule.last_pass(number - 1) for number in self.found()]
