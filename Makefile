# `make` alone lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell command -v python3.11 || command -v python3)
QUICK := not (pipeline or browser or s3 or distributed or hosts or gpu or network or nightly)
ALL := not (distributed or hosts or gpu or network or nightly)
# Three workers keep two cores busy: many tests wait for servers and for processes that they have started.
WORKERS ?= 3
GPU_MINUTES := 15

# One thread in each process: threads that wait for each other more than double the CPU time of the tests.
# tests/conftest.py assigns each test to a worker, and starts the longest groups first.
PYTEST := OMP_NUM_THREADS=1 pytest
PARALLEL := $(PYTEST) -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: help setup demo up down tiny-family compare check check-deps test coverage test-all test-nightly test-distributed test-hosts gpu-smoke clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## install the environment into .venv (7 GB)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "srpo: error: Python 3.11 is required, found '$$($(PYTHON) --version 2>&1)' as '$(PYTHON)': install it, or run 'make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'" >&2; exit 2; }
	@echo "Installing the environment into $(VENV) (7 GB, 3 to 10 minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements.lock
	@# pip compiles on one core only. Some packages contain files for other versions of Python, which do not compile.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >$(VENV)/compile.log 2>&1 || true
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@test -d .srpo || mkdir -m 700 .srpo  # before DVC makes it for everybody
	@touch $@

demo: $(STAMP) ## align the tiny model and publish it: the whole pipeline, on a laptop
	@srpo align --profile tiny

up: $(STAMP) ## start Prefect's server and a worker, deploy the flows; safe to repeat
	@srpo up

down: $(STAMP) ## end them
	@srpo down

tiny-family: $(STAMP) ## train the demo's models from scratch, resumable (2 cores: one hour with AVX-512, two without)
	@cd assets/tiny/recipe && dvc repro && cd ../../.. && python assets/tiny/make_hpd.py
	@cat assets/tiny/recipe/out/table.md
	@echo "assets/tiny now contains the models trained here; 'git checkout assets/tiny' restores the shipped ones." >&2

compare: $(STAMP) ## compare the training methods on the tiny family, resumable; see benchmarks/compare.py
	@python benchmarks/compare.py

check: $(STAMP) ## format, lint, types, import layers
	ruff format --check .
	ruff check .
	mypy
	lint-imports

check-deps: $(STAMP) ## the lock's packages against each other, and against the list of known vulnerabilities (network)
	@test -x .srpo/pip-audit/bin/pip-audit || { $(BIN)/python -m venv .srpo/pip-audit && \
	  .srpo/pip-audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	@python infra/check_dependencies.py .srpo/pip-audit/bin/pip-audit

test: $(STAMP) ## unit tests, parity, one short run of the pipeline
	$(PARALLEL) -m "$(QUICK) and not serial"
	$(PYTEST) -m "$(QUICK) and serial"

coverage: $(STAMP) ## the same with coverage
	$(PARALLEL) -m "$(QUICK) and not serial" --cov --cov-report=
	$(PYTEST) -m "$(QUICK) and serial" --cov --cov-append --cov-report=term:skip-covered

test-all: $(STAMP) ## adds the slow ones: stages, servers, kills, browser, S3
	$(PARALLEL) -m "$(ALL) and not serial" --durations=40
	$(PYTEST) -m "$(ALL) and serial" --durations=0

test-nightly: $(STAMP) ## tests that take too long or need an idle machine: test-distributed and test-hosts among them
	$(PYTEST) -m "nightly or distributed or hosts" -v --durations=0

test-distributed: $(STAMP) ## training with several workers equals training with one; needs an idle machine
	$(PYTEST) -m distributed -v --durations=0

test-hosts: $(STAMP) ## training across two hosts without a common disk, in network namespaces (root)
	$(PYTEST) -m hosts -v -s

gpu-smoke: $(STAMP) ## train the tiny model on a GPU with every compute setting (not yet run on one)
	@echo "Meant to take less than 5 minutes; stopped after $(GPU_MINUTES)."
	timeout $(GPU_MINUTES)m pytest -m gpu -v --durations=10

clean: ## remove runs and their state; keep .venv, store/ and the data remote
	@test ! -e .srpo/services/lock || flock --nonblock .srpo/services/lock true || { \
	  echo "srpo: error: the services use these files: run 'make down' first" >&2; exit 1; }
	rm -rf runs .srpo/runs .srpo/resume .srpo/prefect .srpo/services .srpo/timings .srpo/ray .srpo/dvc .srpo/tensorboard .srpo/wandb .srpo/pip-audit .pytest_cache .mypy_cache .ruff_cache .coverage*
