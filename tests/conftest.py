"""One thread, fixed seeds, no deadline: a test says true or false, never how fast."""

import sys

import shapes_checked

shapes_checked.switch_on()

import jaxtyping
import pytest
import torch
from browser import browser, browser_page
from hypothesis import HealthCheck, settings
from refusals import Said
from tiny import FAMILIES

from kava import __main__ as kava_main
from kava.recipe import registry

__all__ = ["browser", "browser_page"]  # fixtures for every test file

torch.set_num_threads(1)
settings.register_profile(
    "kava",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("kava")


#: Files whose few tests wait for processes, browsers and compilers. They are begun first, so that
#: no worker is left alone with one at the end (`--no-loadscope-reorder` keeps this order).
LONG = (
    "test_slurm", "test_parallel", "test_layerwise", "test_demo", "test_docs", "test_cli",
    "test_resuming", "test_quickstart", "test_examples",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def unchecked():
    """Without the checks of types and shapes, as the package runs: for what it refuses itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=FAMILIES)
def family(request):
    """Every family of tests/tiny.py: for what must hold on any backbone, over few methods."""
    return request.param


#: Rotary, learned positions, windows and soft caps: for what is repeated for every method.
FEW = ("llama", "gpt2", "gemma2")
PAIRS = [(family, "kava") for family in FAMILIES] + [
    (family, method) for method in registry.names("methods") if method != "kava" for family in FEW
]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """(family, method): every family with kava, every method on a few families."""
    return request.param


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A folder with a tiny random llama and its tokenizer, as `kava train --smoke` makes it."""
    from kava.backbones.tiny import tiny_backbone  # and with it the Trainer, which few files need

    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone("llama", folder)
    return folder


@pytest.fixture
def kava(monkeypatch, capsys):
    """Calls the command in this process; returns its status and all it prints.

    What it prints has the error's `code` and `key`, None where there was none.
    """
    errors, report = [], kava_main.report
    monkeypatch.setattr(kava_main, "report", lambda error: (errors.append(error), report(error)))

    def call(*words):
        errors.clear()
        monkeypatch.setattr(sys, "argv", ["kava", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            kava_main.main()
        said = capsys.readouterr()
        return ended.value.code or 0, Said(said.out, said.err, errors[-1] if errors else None)

    return call
