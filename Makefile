# Needs python3 >= 3.11 and make; everything else goes into .venv, again only when the lock or the project changes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
QUICKSTART_ARGS ?=
BENCH_ARGS ?=
PEERS ?=
IMAGE_ARGS ?=
SCRIPTS := .ci/run $(wildcard benchmarks/*.sh docker/*.sh)
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup quickstart test lint style types imports containers scripts bench bench-peers image-test sbom lock clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the locked versions and the project

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Interlock needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: $(STAMP) ## See a backdoored model being made safe by a switch, from nothing
	$(BIN)/interlock quickstart $(QUICKSTART_ARGS)

test: $(STAMP) ## Run the tests (PYTEST_ARGS="-k name" for some of them)
	$(THREADS) $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: style types imports containers scripts ## Check style, types, directions of import, container files and scripts

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports --no-cache

containers: $(STAMP)
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/python -m pytest tests/test_docker.py
	@if docker compose version >/dev/null 2>&1; then compose='docker compose'; \
	elif command -v docker-compose >/dev/null; then compose=docker-compose; \
	else echo 'docker compose is not installed: the compose files are checked by tests/test_docker.py only'; exit 0; fi; \
	export INTERLOCK_MODEL=/models/any INTERLOCK_API_KEY=any; \
	$$compose -f docker/compose.yaml config --quiet; \
	$$compose -f docker/compose.yaml -f docker/compose.gpu.yaml config --quiet

scripts:
	@for script in $(SCRIPTS); do bash -n "$$script"; done
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
	else echo 'shellcheck is not installed: the scripts were only parsed'; fi

bench: $(STAMP) ## Measure this machine (BENCH_ARGS="--quick", or names of suites)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-peers: $(STAMP) ## Install what it is measured against (PEERS="llama-cpp nnsight" for some)
	PYTHON=$(PYTHON) benchmarks/peers.sh $(PEERS)

image-test: ## Build the image and run it for real (minutes, root; IMAGE_ARGS="--wheels DIR")
	docker/verify.sh $(IMAGE_ARGS)

sbom: $(STAMP) ## Write sbom.json (CycloneDX): every package of .venv
	test -x $(VENV)-sbom/bin/cyclonedx-py || { $(PYTHON) -m venv $(VENV)-sbom \
		&& $(VENV)-sbom/bin/python -m pip install --disable-pip-version-check --quiet 'cyclonedx-bom>=7,<8'; }
	$(VENV)-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json $(BIN)/python

lock: ## Write requirements.lock again from the newest versions that pyproject.toml allows
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --disable-pip-version-check --quiet '.[dev]' hatchling editables
	{ sed -n '/^#/p' requirements.lock; $(VENV)-lock/bin/python -m pip freeze --all --exclude pip --exclude interlock \
		| sed -e 's/+[a-z0-9.]*$$//' | grep -viE '^(nvidia|cuda|triton)'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf $(VENV)-lock

clean: ## Remove .venv and caches
	rm -rf $(VENV) $(VENV)-sbom sbom.json .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
