# `make run` serves, `make test` tests, `make check` lints, `make bench` measures, `make lock` pins the requirements,
# `make sbom` lists what the image holds. Requires Python 3.11 or newer and make; a C compiler makes Sluice faster.

PYTHON ?= python3
BIN := .venv/bin
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder
# Every file that is installed has one of the hashes of the lock.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
RUNTIME := requirements.txt requirements-build.txt requirements-embedded.txt
# The versions for all platforms and all Pythons from 3.11 on, with the hashes of all files of each.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--custom-compile-command "make lock"
# docker or podman.
ENGINE ?= docker
IMAGE ?= sluice

.PHONY: run test test-slow attacks check bench dsn seed encoder lock sbom clean

run: encoder
	@exec $(BIN)/python -m server serve

dsn: .venv/runtime
	@exec $(BIN)/python -m server dsn

seed: .venv/runtime
	@exec $(BIN)/python -m server seed

# Two processes, each with a PostgreSQL of its own. All tests of a file run in one process. The files run in the order of
# tests/conftest.py, slow ones first; without --no-loadscope-reorder xdist would begin with those that have most tests.
test: .venv/development encoder
	$(BIN)/python -m pytest -m "not slow and not attacks" $(PARALLEL)

test-slow: .venv/development encoder
	$(BIN)/python -m pytest -m slow --no-cov $(PARALLEL)

# On a quiet machine: each measures a download while another client attacks.
attacks: .venv/development encoder
	$(BIN)/python -m pytest -m attacks --no-cov tests/security/test_slow_requests.py

check: .venv/development encoder
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --no-cov -q tests/system/test_architecture.py tests/system/test_requirements.py

bench: .venv/development encoder
	$(BIN)/python -m benchmarks $(BENCH)

encoder: .venv/encoder

# In this order: each file names those before it as its constraints. UPGRADE=--upgrade takes newer indirect requirements.
lock: .venv/development
	$(LOCK) $(UPGRADE) requirements.in --output-file requirements.txt
	$(LOCK) $(UPGRADE) requirements-build.in --output-file requirements-build.txt
	$(LOCK) $(UPGRADE) requirements-embedded.in --output-file requirements-embedded.txt
	$(LOCK) $(UPGRADE) requirements-dev.in --output-file requirements-dev.txt

# CycloneDX, of the whole image: Python packages, the libraries in them, and Debian's packages.
sbom: .venv/development
	@command -v $(firstword $(ENGINE)) >/dev/null || { echo "make sbom needs a container engine: ENGINE=podman" >&2; exit 1; }
	$(ENGINE) build --tag $(IMAGE) .
	@mkdir -p build
	@container=$$($(ENGINE) create $(IMAGE)) && trap "$(ENGINE) rm $$container >/dev/null" EXIT \
		&& $(ENGINE) export $$container | $(BIN)/python -m supply.sbom >build/sbom.cdx.json
	@echo "build/sbom.cdx.json" >&2

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Sluice needs Python 3.11 or newer; select one: make run PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { rm -rf .venv; echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/runtime: $(RUNTIME) | .venv/bin/python
	@echo "Installing the requirements into .venv" >&2
	@$(PIP) $(RUNTIME:%=--requirement %)
	@touch $@

.venv/development: requirements-dev.txt .venv/runtime
	@echo "Installing the development requirements into .venv" >&2
	@$(PIP) --requirement requirements-dev.txt
	@touch $@

# Optional: without a compiler the pure-Python encoder is used.
.venv/encoder: server/encode/_encode.pyx setup.py .venv/runtime
	@echo "Building the native encoder" >&2
	@$(BIN)/python setup.py --quiet build_ext --inplace >.venv/encoder.log 2>&1 \
		|| echo "The native encoder could not be built (see .venv/encoder.log)" >&2
	@touch $@

clean:
	rm -rf .venv build server/encode/_encode.c server/encode/_encode*.so
