# Every target does its own set-up: it finds a Python >= 3.12, makes .venv and installs into it.
# The stamps in .venv make the second run quick; a change of pyproject.toml installs again.
#   make test PYTHON=/path/to/python3.13       another Python (for a new .venv)
#   make test PYTEST_ARGS="-k cell -x"         more arguments for pytest

VENV := .venv
PYTHON ?=
PYTEST_ARGS ?=
# Two processes, for two cores; a file's tests stay together, with the clusters that they share.
PARALLEL := -n 2 --dist loadfile
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(VENV)/bin/python -m pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow lint format bench bench-gpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-demo ## a first Gram matrix, end to end, on this machine
	$(VENV)/bin/rntk-dist demo

test: $(VENV)/.installed-dev ## the tests and doctests, but the slow ones
	$(PYTEST) $(PARALLEL) -m "not slow" $(PYTEST_ARGS)

# pytest ends with 5 where no test is marked slow: nothing to run is no failure.
test-slow: $(VENV)/.installed-dev ## the slow tests
	$(PYTEST) $(PARALLEL) -m slow $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: $(VENV)/.installed-dev ## style, format, types and import contracts
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev ## put style and format right where a tool can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: $(VENV)/.installed-dev ## what is fast, by how much, against whom
	$(VENV)/bin/python -m benchmarks

bench-gpu: $(VENV)/.installed-dev ## the CUDA kernel on this machine's GPU
	$(VENV)/bin/python -m benchmarks.gpu

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	python=$$(PYTHON='$(PYTHON)' tools/find-python) && "$$python" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.made pyproject.toml
	@echo "Installing rntk_dist and what the demo needs into $(VENV) ..."
	$(PIP_INSTALL) --editable ".[datasets,plot]"
	@touch $@

# The dev extra holds what the demo needs.
$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml
	@echo "Installing rntk_dist and its development tools into $(VENV) ..."
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@ $(VENV)/.installed-demo
