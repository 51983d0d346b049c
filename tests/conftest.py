"""One thread, fixed seeds, no deadline: a test says true or false, never how fast."""

import functools
import gc
import os
import subprocess
import sys
from pathlib import Path

import shapes_checked

shapes_checked.switch_on()

import combinations
import jaxtyping
import pytest
import torch
import typer.main
from browser import browser, browser_page
from hypothesis import HealthCheck, settings
from refusals import Said
from tiny import FAMILIES

from kava import __main__ as kava_main
from kava.recipe import registry

__all__ = ["browser", "browser_page"]  # fixtures for every test file

torch.set_num_threads(1)
# typer makes all commands anew for each call, in 40 ms.
typer.main.get_command = functools.cache(typer.main.get_command)
if "KAVA_COMBINATIONS" in os.environ:
    combinations.record(Path(os.environ["KAVA_COMBINATIONS"]))
settings.register_profile(
    "kava",
    deadline=None,
    max_examples=50,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("kava")


#: Files whose few tests wait for processes, browsers and compilers. They are begun first, so that
#: no worker is left alone with one at the end (`--no-loadscope-reorder` keeps this order).
LONG = (
    "test_slurm", "test_parallel", "test_layerwise", "test_demo", "test_docs", "test_cli",
    "test_resuming", "test_quickstart", "test_examples", "test_sweep", "test_types",
)  # fmt: skip


#: Files of the mathematics and the command line: `pytest -m fast` runs them, but for what starts
#: processes or browsers, and imports no other. Together they take less than a minute of two cores.
FAST = (
    "test_attention", "test_batching", "test_cli", "test_codes", "test_console", "test_docstrings",
    "test_evictions",
    "test_generation", "test_latents", "test_losses", "test_order", "test_paired", "test_recipe",
    "test_registry", "test_rkv_decoding", "test_score", "test_step", "test_synthetic",
    "test_tasks",
)  # fmt: skip
#: A test that uses the fixture has the marker.
BY_FIXTURE = {"browser": "browser", "cluster": "slurm"}
NOT_FAST = {*BY_FIXTURE.values(), "processes", "gpu"}


def pytest_ignore_collect(collection_path, config):
    """Without the imports of files whose tests would be left out anyway."""
    test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    if config.option.markexpr == "fast" and test and collection_path.stem not in FAST:
        return True


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)
    for item in items:
        for fixture in BY_FIXTURE.keys() & set(item.fixturenames):
            item.add_marker(BY_FIXTURE[fixture])
        if item.path.stem in FAST and not any(map(item.get_closest_marker, NOT_FAST)):
            item.add_marker("fast")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Each training collects garbage; without this it searches all imported modules for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _without_processes(request, monkeypatch):
    """A fast test starts no Python: it would take seconds to import the package again."""
    begin = subprocess.Popen.__init__

    def refuse(self, words, *rest, **options):
        if words[0] == sys.executable and MATH_VERIFY not in words:
            pytest.fail("a test that starts Python is to be marked `processes`")
        begin(self, words, *rest, **options)

    if request.node.get_closest_marker("fast"):
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


#: Started by kava, once in a test session.
MATH_VERIFY = "kava.evaluation._symbolic_worker"


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


def pairs(*families):
    """(family, method): every family with kava, every other method on these families."""
    others = [method for method in registry.names("methods") if method != "kava"]
    with_kava = [(family, "kava") for family in FAMILIES]
    return with_kava + [(family, method) for method in others for family in families]


@pytest.fixture(params=pairs("gpt2"), ids="-".join)
def pair(request):
    """For what one family or one method gets wrong; rotations would forgive shifted positions."""
    return request.param


@pytest.fixture(params=pairs("llama", "gpt2", "gemma2"), ids="-".join)
def every_pair(request):
    """Rotary, learned positions, windows and soft caps, with every method: for short tests."""
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
