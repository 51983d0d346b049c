"""No eviction: keep every token, for chains of thought that are no longer than the latents."""

from torch import Tensor

from kava.errors import KavaError
from kava.reasoning.evictions._base import Eviction, EvictionInputs
from kava.shapes import Float


class Full(Eviction):
    """Keep all tokens without compression."""

    def check(self, max_steps: int, budget: int) -> None:
        """Check that no token would have to be evicted.

        Raises:
            KavaError: a chain of thought of `max_steps` tokens does not fit `budget`.
        """
        if max_steps > budget:
            raise KavaError(
                f"kv.eviction.name: 'full' keeps everything, but a reasoning trace of {max_steps} "
                f"tokens does not fit num_latents {budget}; raise num_latents or choose 'rkv'",
                code="reasoning.trace-too-long",
                key="kv.eviction.name",
            )

    def score(self, inputs: EvictionInputs) -> Float[Tensor, "batch kv_heads steps"]:
        """Return equal scores for all tokens, [batch, kv_heads, steps]."""
        return inputs.keys.new_zeros(inputs.keys.shape[:3])


IMPLEMENTATION = Full
