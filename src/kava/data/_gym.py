"""Use the generators of the package reasoning-gym (the extra `gym`)."""

from collections.abc import Callable
from importlib.util import find_spec
from random import Random
from typing import Any

from kava.errors import KavaError, install, unknown_name


def gsm_symbolic_generators() -> dict[int, Callable[[Random, float], dict[str, Any]]]:
    """Return the functions that fill in the templates of gsm_symbolic, by the template's number.

    Raises:
        KavaError: reasoning-gym is not installed.
    """
    _check_installed("gsm_symbolic")
    from reasoning_gym.arithmetic.gsm_symbolic import gsm_symbolic

    config = gsm_symbolic.GSMSymbolicDatasetConfig(seed=0, size=1)
    loaded = gsm_symbolic.GSMSymbolicDataset(config).generators
    return {number: loaded[number] for number in gsm_symbolic.tasks_ok}


def rows(name: str, count: int, seed: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first `count` questions and answers of a generator of reasoning-gym.

    Args:
        options: fields of the generator's own configuration, such as `max_terms`.

    Raises:
        KavaError: reasoning-gym is not installed, or it has no such generator.
        ValueError: the generator does not have an option, or rejects its value.
    """
    _check_installed(name)
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise unknown_name(
            "data set of reasoning-gym", name, DATASETS, code="data.unknown-generator"
        )
    try:
        made = reasoning_gym.create_dataset(name, size=count, seed=seed, **options)
        return [made[index] for index in range(count)]
    except AssertionError as error:  # how it rejects values
        raise ValueError(str(error) or f"{name} rejects {options}") from None


def _check_installed(name: str) -> None:
    if find_spec("reasoning_gym") is None:
        raise KavaError(
            f"{name}: its problems are made with the package reasoning-gym; {install('gym')}",
            code="data.gym-not-installed",
            key=name,
        )
