"""The possible numbers of latents and iterations, and how to change the number of latents."""

from dataclasses import dataclass

from kava.errors import KavaError
from kava.reasoning.methods import LatentMethod
from kava.reasoning.reasoner import Reasoner


@dataclass(frozen=True)
class Range:
    """Allowed values from `minimum` to `maximum` in steps; `default` is the recipe's value."""

    minimum: int
    maximum: int
    step: int
    default: int

    def check(self, value: int, name: str) -> None:
        """Raise a KavaError for a value that is not allowed."""
        if value not in range(self.minimum, self.maximum + 1, self.step):
            steps = f" in steps of {self.step}" if self.step > 1 else ""
            raise KavaError(
                f"{name}: {value} is not in the range {self.minimum} to {self.maximum}{steps}",
                code="demo.not-one-of-the-sizes",
                key=name,
            )


def latents(reasoner: Reasoner) -> Range | None:
    """Return the range of M, in whole blocks up to the trained number; None without latents."""
    method, usual = reasoner.method, reasoner.recipe.num_latents
    if not isinstance(method, LatentMethod):
        return None
    return Range(method.block, usual, method.block, usual)


def iterations(reasoner: Reasoner) -> Range | None:
    """Return the range of T, from 0 to twice the trained number; None if T cannot be chosen."""
    usual = reasoner.recipe.num_iterations
    return Range(0, max(2 * usual, 1), 1, usual) if reasoner.method.iterates else None


def resize_latents(reasoner: Reasoner, num_latents: int | None) -> Reasoner:
    """Return a reasoner with the same weights and another number of latents; None changes nothing.

    Raises:
        KavaError: a number that `latents` does not allow.
    """
    if num_latents is None:
        return reasoner
    allowed = latents(reasoner)
    if allowed is None:
        raise KavaError(
            f"method '{reasoner.recipe.method}' does not use latent tokens",
            code="demo.no-latents",
            key=reasoner.recipe.method,
        )
    allowed.check(num_latents, "number of latents")
    return reasoner.with_settings(num_latents=num_latents)
