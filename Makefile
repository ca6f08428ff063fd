# SPDX-License-Identifier: Apache-2.0
# Every target sets itself up: a virtual environment in .venv, everything from PyPI, then the work.
# Needs Python 3.11+, a C++ compiler, make and perl. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: help setup demo test smoke soak lint format bench clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP) ## virtual environment with lutra and what its tests need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: lutra needs Python 3.11 or newer (make PYTHON=python3.12 ...)")'
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || { echo "error: a C++ compiler is needed (Debian: apt-get install g++)" >&2; exit 2; }
	@command -v perl >/dev/null || { echo "error: perl is needed (Debian: apt-get install perl)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## a small language model written out by simulated hardware, every word checked
	$(BIN)/lutra demo

test: lint ## lint, types and the tests (some 16 minutes from nothing on two cores, 6 with a warm cache)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not soak'

smoke: $(STAMP) ## the quick part of the tests
	$(BIN)/python -m pytest -m 'smoke and not soak'

soak: $(STAMP) ## the full sweeps; the result is kept in docs/results/
	$(BIN)/python tests/soak.py

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p lutra
	$(BIN)/mypy tests benchmarks
	$(BIN)/mypy examples

format: $(STAMP) ## ruff's formatting and safe mends
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## simulation and model speeds, RAM blocks; kept in docs/results/
	$(BIN)/python -m benchmarks

clean: ## virtual environment and tool caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
