"""How long a question may be beside the latents and the answer."""

from __future__ import annotations

from kava.errors import KavaError
from kava.model import Reasoner


def longest(reasoner: Reasoner, command: str, new_tokens: int, wanted: int) -> int:
    """The tokens that a question may have: `wanted`, or what the backbone's positions leave.

    Args:
        command: who asks, for the error.

    Raises:
        KavaError: they leave none.
    """
    positions = getattr(reasoner.lm.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return wanted
    latents = reasoner.recipe.num_latents + 2 if reasoner.method.uses_latents else 0
    room = positions - latents - len(reasoner.encoder.prompt) - new_tokens
    if room < 1:
        raise KavaError(
            f"{command}: the backbone has {positions} positions, which leaves no room for a "
            f"question beside {new_tokens} new tokens; lower --max-new-tokens"
        )
    return min(wanted, room)
