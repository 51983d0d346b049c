"""One thread, fixed seeds, no deadline: a test says true or false, never how fast."""

import pytest
import torch
from hypothesis import HealthCheck, settings

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


@pytest.fixture(params=("llama", "qwen2", "gpt2"))
def family(request):
    """Grouped heads with tied embeddings, grouped heads with biases, learned positions."""
    return request.param
