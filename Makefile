# Needs Python 3.11 or newer, make and a C compiler; everything else is installed into .venv, pinned by hash.
PYTHON ?= python3
WORKERS ?= 2
UPGRADE ?=
CHAOS_JOBS ?= 20000

VENV := .venv
BIN := $(VENV)/bin
PIP := python -m pip -qq --disable-pip-version-check --no-input
UV := $(VENV)/lock/bin/uv

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check chaos bench lock clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo-stamp ## Serve the example service with every capability on, and say where to look
	@exec $(BIN)/svc-infra demo

test: $(VENV)/.dev-stamp ## Run every test (WORKERS=2 processes)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/.dev-stamp ## Check style, format, types and layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

chaos: $(VENV)/.dev-stamp ## Prove at length that nothing is lost: 20,000 jobs per backend (CHAOS_JOBS=20000, CHAOS_SEED=...)
	@CHAOS_JOBS=$(CHAOS_JOBS) STATE_MACHINE_TIMES=20 SCHEDULE_STORM_ZONES=3 $(BIN)/python -m pytest -rP -o faulthandler_timeout=0 \
		tests/chaos tests/jobs/test_schedule_storm.py tests/jobs/test_state_machine.py

bench: $(VENV)/.dev-stamp ## Measure the HTTP stack, the cache and the job queues, side by side with their peers
	@$(BIN)/python -m bench.http
	@$(BIN)/python -m bench.http_peers
	@$(BIN)/python -m bench.round_trips
	@$(BIN)/python -m bench.cache --install
	@$(BIN)/python -m bench.jobs
	@$(BIN)/python -m bench.jobs_peers
	@$(BIN)/python -m bench.jobs_fairness
	@$(BIN)/python -m bench.jobs_held
	@$(BIN)/python -m bench.auth
	@$(BIN)/python -m bench.restarts

lock: $(UV) ## Compile the lock files (UPGRADE=1 takes the newest versions)
	@$(COMPILE) --extra dev --output-file requirements/dev.txt
	@$(COMPILE) --extra postgres --extra redis --extra mfa --extra cli --group demo --constraint requirements/dev.txt --output-file requirements/demo.txt

clean: ## Remove what make made: .venv, caches and local data
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One universal lock for every platform and every Python from 3.11 on; it names no index and no path.
COMPILE = $(UV) --no-config --quiet pip compile pyproject.toml --group build --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	$(if $(UPGRADE),--upgrade)

$(VENV)/.%-stamp: requirements/%.txt pyproject.toml | $(BIN)/pip
	@echo "Installing requirements/$*.txt into $(VENV) (about a minute the first time)"
	@$(BIN)/$(PIP) install --require-hashes -r $<
	@$(BIN)/$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(UV): | $(BIN)/pip
	@$(BIN)/python -m venv $(VENV)/lock
	@$(VENV)/lock/bin/$(PIP) install uv==0.13.9

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "svc-infra needs Python 3.11 or newer, which $(PYTHON) is not: try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV)
