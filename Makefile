# The commands of a developer's day. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first of these that is Python 3.11 to 3.13 makes .venv; `make PYTHON=... test` asks for another.
PYTHON ?= python3.11 python3
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
JOBS ?= auto
BIN := .venv/bin
LOG := .venv/setup.log
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
TEST := -m pytest --quiet --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile $(ARGS)
# `make lock LOCKS=requirements.oldest.lock` leaves the other one as it is.
LOCKS ?= requirements.lock requirements.oldest.lock

.PHONY: help demo test test-oldest check lint format lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.ready ## a real teacher becomes a smaller student, on the CPU, with a scorecard
	@$(BIN)/lrc demo $(ARGS)

test: .venv/.ready ## run every test, the slow ones too; ARGS="tests/clone -k merge" narrows it
	@$(BIN)/python $(TEST)

test-oldest: .venv-oldest/.ready ## the same with the oldest versions that pyproject.toml allows, in .venv-oldest
	@.venv-oldest/bin/python $(TEST)

check: lint test ## lint, then test: what a submission must pass

lint: .venv/.ready ## style and types; silent if all is well
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . || true; echo "Run: make format"; exit 1; }
	@$(BIN)/mypy --no-error-summary

format: .venv/.ready ## rewrite the files in the one style
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .

# Everything pip says goes to the log, which is shown only if a step fails.
.venv/.ready: requirements.lock pyproject.toml
	@python=; for candidate in $(PYTHON); do \
	    if "$$candidate" -c '$(SUPPORTED)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "lrc needs Python 3.11 to 3.13; none of these is one: $(PYTHON)." >&2; \
	    echo "Install one and name it, for example: make PYTHON=python3.12 test" >&2; \
	    exit 2; \
	fi; \
	if ! $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null; then "$$python" -m venv --clear .venv; fi
	@echo "Setting up .venv, once (about 2.5 GB, more with a CUDA build of torch; log: $(LOG))"
	@{ $(PIP) install -r requirements.lock && $(PIP) install --no-deps --no-build-isolation -e .; } >$(LOG) 2>&1 \
	    || { cat $(LOG) >&2; echo "Setting up .venv failed: see above." >&2; exit 1; }
	@touch $@

# Python 3.11 alone: not all of the oldest versions have wheels for a newer one.
.venv-oldest/.ready: requirements.oldest.lock pyproject.toml
	@echo "Setting up .venv-oldest, once (about 1.5 GB)"
	@python3.11 -m venv --clear .venv-oldest
	@pip=".venv-oldest/bin/python -m pip --disable-pip-version-check --no-input --quiet"; \
	{ $$pip install -r requirements.oldest.lock && $$pip install --no-deps --no-build-isolation -e .; } \
	    >.venv-oldest/setup.log 2>&1 \
	    || { cat .venv-oldest/setup.log >&2; echo "Setting up .venv-oldest failed: see above." >&2; exit 1; }
	@touch $@

# The newest versions that fit, tried in a fresh environment; for the oldest lock the lower end of every dependency's
# range. Builds for one kind of GPU are left out, so that the files suit every machine; setuptools is named
# since pip leaves it out.
lock: ## write both lock files anew from pyproject.toml
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	: >"$$scratch/requirements.lock"; \
	sed -nE '/^dependencies/,/^]/s/^ *"([a-z0-9_]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml \
	    >"$$scratch/requirements.oldest.lock"; \
	for lock in $(LOCKS); do \
	    python3.11 -m venv --clear "$$scratch/venv"; pins=$$scratch/venv/bin/python; \
	    $$pins -m pip install --disable-pip-version-check --quiet 'torch==2.13.0' -r "$$scratch/$$lock" '.[demo,dev]' \
	        >"$$scratch/log" 2>&1 || { cat "$$scratch/log" >&2; exit 1; }; \
	    $$pins -m pip freeze --disable-pip-version-check --all --exclude lrc --exclude pip \
	        | sed -E 's/\+[a-z0-9.]+$$//' | grep -vE '^(nvidia-|cuda-|triton==)' >"$$scratch/pins"; \
	    { sed -n '/^#/p' "$$lock"; grep '^torch==' "$$scratch/pins"; grep -v '^torch==' "$$scratch/pins"; } \
	        >"$$scratch/new"; \
	    cp "$$scratch/new" "$$lock"; \
	done

clean: ## remove .venv, builds and caches; runs/ stays
	@rm -rf .venv .venv-oldest build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
