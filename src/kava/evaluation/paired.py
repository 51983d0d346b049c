"""Statistics of accuracies: the interval of one, and the comparison of two on the same questions.

`a` and `b` are lists of hits (true if an answer is correct), in the same order of questions. The
intervals describe the sampling of questions; they say nothing about other training seeds.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kava.errors import KavaError

LEVEL = 0.95
RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # questions drawn at once: 32 MB


def check_seed(seed: int) -> None:
    """Raise a KavaError if torch's random number generators do not accept a seed."""
    if not -(2**63) <= seed < 2**64:
        raise KavaError(
            f"seed {seed} is out of range; give one from {-(2**63)} to {2**64 - 1}",
            code="evaluation.bad-seed",
            key="seed",
        )


def difference(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the accuracy of `a` minus that of `b`, in percentage points.

    Raises:
        KavaError: if the lists differ in length or are empty.
    """
    _check(a, b)
    return 100 * (sum(map(bool, a)) - sum(map(bool, b))) / len(a)


def paired_bootstrap(
    a: Sequence[bool], b: Sequence[bool], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % interval of `difference(a, b)`: percentiles over resampled questions.

    Pairs stay together in the resampling. The same arguments give the same interval. If `a` and `b`
    agree on every question, it is (0, 0).

    Raises:
        KavaError: if the lists differ in length or are empty; see `check_seed`.
    """
    _check(a, b)
    check_seed(seed)
    gaps = torch.tensor([int(x) - int(y) for x, y in zip(a, b, strict=True)])
    n, generator = len(gaps), torch.Generator().manual_seed(seed)
    sums: list[Tensor] = []
    left = resamples
    while left:
        count = min(left, max(1, _AT_ONCE // n))
        sums.append(gaps[torch.randint(n, (count, n), generator=generator)].sum(1))
        left -= count
    # Integers up to this point, so that swapping `a` and `b` negates the interval exactly.
    ordered = torch.cat(sums).sort().values.tolist()
    skipped = math.floor((1 - LEVEL) / 2 * resamples)
    return 100 * ordered[skipped] / n, 100 * ordered[-1 - skipped] / n


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the two-sided p of McNemar's exact test that two accuracies do not differ.

    Only questions on which the two disagree count. Under the null hypothesis, each is correct in
    `a` or in `b` with equal probability (binomial). If there is no such question, p is 1.

    Raises:
        KavaError: if the lists differ in length or are empty.
    """
    _check(a, b)
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy of `hits` in `n`, in percent (Wilson score interval).

    Unlike one standard error, it has a width at 0 and 100 % too.

    Raises:
        KavaError: if `n` is not above 0.
    """
    if n < 1:
        raise KavaError(
            f"cannot compute a confidence interval for {n} questions; give at least one",
            code="evaluation.no-questions",
            key="n",
        )
    z = 1.959964  # quantile of the standard normal distribution for 95 %
    share, spread = hits / n, z * z / n
    middle = share + spread / 2
    width = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = ((middle + side * width) / (1 + spread) for side in (-1, 1))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def _check(a: Sequence[bool], b: Sequence[bool]) -> None:
    if len(a) != len(b) or not a:
        raise KavaError(
            f"cannot compare {len(a)} and {len(b)} answers in pairs; give answers to the same "
            "questions, at least one",
            code="evaluation.not-paired",
        )
