"""One thread, fixed seeds, no deadline: a test says true or false, never how fast."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import FAMILIES

torch.set_num_threads(1)
settings.register_profile(
    "kava",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("kava")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=FAMILIES)
def family(request):
    """Every family of tests/tiny.py: for what must hold on any backbone, over few methods."""
    return request.param


@pytest.fixture(params=("llama", "gpt2", "gemma2"))
def few(request):
    """Rotary, learned positions, windows and soft caps: for what is repeated for every method."""
    return request.param
