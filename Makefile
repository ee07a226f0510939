# `make` alone lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell command -v python3.11 || command -v python3)
QUICK := not (pipeline or browser or s3 or distributed or gpu or network)
ALL := not (distributed or gpu or network)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: help setup demo tiny-family check test test-all test-distributed gpu-smoke clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## the environment alone, in .venv (7 GB)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "srpo: error: Python 3.11 is needed, found '$$($(PYTHON) --version 2>&1)' as '$(PYTHON)': install it, or run 'make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'" >&2; exit 2; }
	@echo "Installing the environment into $(VENV) (7 GB, 3 to 10 minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## align the tiny model and publish it: the whole road, on a laptop
	@srpo align --profile tiny

tiny-family: $(STAMP) ## train the demo's models from nothing (2 cores: about an hour with AVX-512, two without), resumable
	@cd assets/tiny/recipe && dvc repro && cd ../../.. && python assets/tiny/make_hpd.py
	@cat assets/tiny/recipe/out/table.md
	@echo "assets/tiny now holds the family trained here; 'git checkout assets/tiny' brings back the one that ships." >&2

check: $(STAMP) ## format, lint, types, floors
	ruff format --check .
	ruff check .
	mypy
	lint-imports

test: $(STAMP) ## unit tests, parity, one run of the road, with coverage
	pytest -m "$(QUICK)" --cov --cov-report=term:skip-covered

test-all: $(STAMP) ## adds the slow ones: stages, servers, kills, browser, S3
	pytest -m "$(ALL)" --durations=15

test-distributed: $(STAMP) ## several workers learn what one learns: needs a machine with nothing else to do
	pytest -m distributed -v --durations=0

gpu-smoke: $(STAMP) ## for the first owner of a GPU: train the tiny model on it
	pytest -m gpu -v

clean: ## remove runs and the state beside them; .venv, store/ and the data remote stay
	rm -rf runs .srpo/runs .srpo/resume .srpo/prefect .srpo/timings .srpo/ray .srpo/dvc .pytest_cache .mypy_cache .ruff_cache .coverage*
