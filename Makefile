# Every target does its own set-up: a Python from 3.11 on with pip is all that has to be there.
#
#   PYTHON=python3.13    the interpreter to use; the environment is made anew when it changes
#   DEMO_ARGS=PATH       what to hand to `kvsage demo`
#   PYTEST_ARGS="-k x"   what to hand to pytest

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
  then echo "$$p"; break; fi; done)
endif

VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8

# The name tells which interpreter and uv made the environment, so that another one makes it anew.
MADE := $(VENV)/made-by-$(subst /,-,$(PYTHON))-uv-$(UV_VERSION)

# `--upgrade` brings an old environment to exactly what a fresh one would get on the pinned date.
UV_INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --upgrade --editable '.[cli]'

# uv trusts the authorities that it ships: a bare machine may know none, one behind a private
# authority needs its own.
install = $(UV_INSTALL) $(1) || { echo 'Once more, with the certificates of this machine'; \
  $(UV_INSTALL) $(1) --system-certs; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format types layers check bench bench-space bench-trees coverage clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name what; \
	  do printf '%-16s %s\n' "$$name" "$$what"; done

demo: $(VENV)/ready-demo ## see kvsage at work on the files of Python's standard library
	@$(BIN)/kvsage demo $(DEMO_ARGS)

test: $(VENV)/ready-dev ## run the tests on all cores
	@$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/ready-dev ## check style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(VENV)/ready-dev ## repair what lint finds, where that is safe
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(VENV)/ready-dev ## check the types
	@$(BIN)/mypy

layers: $(VENV)/ready-dev ## check who imports whom
	@$(BIN)/lint-imports --no-logo

check: test lint types layers ## test, lint, types and layers

bench: $(VENV)/ready-bench ## compare with raw py-lmdb, in a minute
	@$(BIN)/python bench/quick.py $(BENCH_ARGS)

bench-space: $(VENV)/ready-bench ## space, waits, opening and upkeep, in four minutes
	@$(BIN)/python bench/space.py $(BENCH_ARGS)

bench-trees: $(VENV)/ready-bench ## large values saved again and again, and a long list, in a minute
	@$(BIN)/python bench/trees.py $(BENCH_ARGS)

coverage: $(VENV)/ready-dev ## run the tests and list what they do not reach
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n auto --dist worksteal $(PYTEST_ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

clean: ## remove the environment and all caches
	rm -rf $(VENV) .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache \
	  .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Without pip in the environment, because Debian's Python has no ensurepip; the interpreter's own
# pip installs into it.
$(MADE):
	@test -n '$(PYTHON)' || { echo 'No Python from 3.11 on was found; name one: make PYTHON=/path/to/python' >&2; exit 1; }
	@echo 'Making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@touch $@

$(VENV)/ready-demo: $(MADE) pyproject.toml
	@echo 'Installing kvsage'
	@$(call install,)
	@touch $@

$(VENV)/ready-dev: $(MADE) pyproject.toml
	@echo 'Installing kvsage and what its development needs'
	@$(call install,--group dev)
	@touch $@

$(VENV)/ready-bench: $(MADE) pyproject.toml
	@echo 'Installing kvsage and its peers'
	@$(call install,--group bench)
	@touch $@
