# Needs Python 3.11 or newer, make and a package index; neither root nor an activated environment.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PATH := $(if $(PATH),$(PATH):)/usr/local/bin:/usr/bin:/bin
export PATH
# Installers ask nobody, and say only what goes wrong.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

VENV := .venv
BIN := $(VENV)/bin
NEWER := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	"$$python" -c '$(NEWER)' 2>/dev/null && command -v "$$python" && break; done)

.PHONY: help run test test-faults check format up-local bench clean

help: ## list what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

# ORCHESTRATOR_CHAT_BASE_URL and ORCHESTRATOR_CHAT_MODEL, when set, put a language model in for classifying and writing.
run: $(VENV)/.installed ## review this repository's LICENSE with five agents, in one process
	@$(BIN)/orchestrator run examples/contract_review/workflow$${ORCHESTRATOR_CHAT_BASE_URL:+-chat}.yaml \
		--input contract=@LICENSE

# Two files at a time; then, one by one, what kills or measures. Exit 5: PYTEST selected none of them.
test: $(VENV)/.installed-dev ## all tests but the long ones; starts its own PostgreSQL, Redis and RabbitMQ
	$(BIN)/python -m pytest -m "not (faults or quiet or soak)" -n 2 --dist loadfile $(PYTEST) || test $$? -eq 5
	$(BIN)/python -m pytest -m "(faults or quiet) and not soak" $(PYTEST) || test $$? -eq 5

test-faults: $(VENV)/.installed-dev ## the whole fault matrix, the long rows too
	FAULT_REPORT=1 $(BIN)/python -m pytest -m "faults or soak" --timeout=7200 $(PYTEST)

check: $(VENV)/.installed-dev ## format, lint, types, layers, dead code, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/codespell

format: $(VENV)/.installed-dev ## rewrite the code as `check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --exit-zero .

up-local: $(VENV)/.installed-dev ## every role as a process here, on PostgreSQL and Redis of its own
	@$(BIN)/orchestrator up-local

bench: $(VENV)/.installed-dev ## the benchmarks
	$(BIN)/python -m bench

clean: ## remove the environment, caches and local data
	rm -rf $(VENV) .orchestrator dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. Each stamp is newer than pyproject.toml when what it stands for is installed.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found: install it, then try again." >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python's venv module does not work here (Debian: install python3-venv), then try again." >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) …" >&2
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) what tests and checks need …" >&2
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed
