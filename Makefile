# make quickstart   see it work: train, measure and ask on this machine, in minutes
# make test         linter, formatter and all tests
# make clean        remove .venv and caches; results under runs/ stay

PYTHON ?= python3
# More options for installing torch. By default Linux gets the CUDA build, some gigabytes; with
# TORCH_OPTIONS="--index-url ..." (pytorch.org, "Get started", names it) the small CPU build.
TORCH_OPTIONS ?=

BIN := .venv/bin
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: quickstart test clean

quickstart: .venv/ready
	@$(BIN)/kava quickstart

test: .venv/ready-to-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pytest

# Done once, and again when the dependencies change.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "kava needs Python 3.10 or later as '$(PYTHON)'; name one with PYTHON=/path/to/python"; \
	  exit 1; }
	@echo "Setting up .venv (once): Python"
	@$(PYTHON) -m venv .venv
	@echo "Setting up .venv (once): $(TORCH), the largest part"
	@$(INSTALL) $(TORCH_OPTIONS) $(TORCH)
	@echo "Setting up .venv (once): kava and its other dependencies"
	@$(INSTALL) -e .
	@touch $@

.venv/ready-to-test: .venv/ready
	@echo "Setting up .venv (once): test tools"
	@$(INSTALL) -e '.[test]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
