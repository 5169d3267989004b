# `make run` serves, `make test` tests, `make check` lints, `make bench` measures. Requires Python 3.11 or newer and
# make; a C compiler makes Sluice faster.

PYTHON ?= python3
BIN := .venv/bin
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test test-slow check bench dsn seed encoder clean

run: encoder
	@exec $(BIN)/python -m server serve

dsn: .venv/runtime
	@exec $(BIN)/python -m server dsn

seed: .venv/runtime
	@exec $(BIN)/python -m server seed

# Two processes, each with a PostgreSQL of its own. All tests of a file run in one process. The files run in the order of
# tests/conftest.py, slow ones first; without --no-loadscope-reorder xdist would begin with those that have most tests.
test: .venv/development encoder
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: .venv/development encoder
	$(BIN)/python -m pytest -m slow --no-cov $(PARALLEL)

check: .venv/development encoder
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --no-cov -q tests/system/test_architecture.py

bench: .venv/development encoder
	$(BIN)/python -m benchmarks $(BENCH)

encoder: .venv/encoder

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Sluice needs Python 3.11 or newer; select one: make run PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { rm -rf .venv; echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/runtime: requirements.txt | .venv/bin/python
	@echo "Installing the requirements into .venv" >&2
	@$(PIP) install --quiet --requirement requirements.txt
	@touch $@

.venv/development: requirements-dev.txt .venv/runtime
	@echo "Installing the development requirements into .venv" >&2
	@$(PIP) install --quiet --requirement requirements-dev.txt
	@touch $@

# Optional: without a compiler the pure-Python encoder is used.
.venv/encoder: server/encode/_encode.pyx setup.py .venv/runtime
	@echo "Building the native encoder" >&2
	@$(BIN)/python setup.py --quiet build_ext --inplace >.venv/encoder.log 2>&1 \
		|| echo "The native encoder could not be built (see .venv/encoder.log)" >&2
	@touch $@

clean:
	rm -rf .venv build server/encode/_encode.c server/encode/_encode*.so
