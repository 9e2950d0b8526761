# The verbs of this repository. `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-heavy bench chaos mutants lint format generate check-generated lock install tools clean

help: ## List the verbs.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: install ## Start everything on this machine and place sample orders; Ctrl-C ends it.
	@$(BIN)/orderflow dev $(ARGS)

test: install tools lint check-generated ## Run everything that CI runs.
	$(BIN)/python -m tests $(ARGS)

test-heavy: install tools ## Run the tests that take over 30 s; run nothing else meanwhile.
	$(BIN)/python -m pytest -m heavy --timeout 3600 $(ARGS)

bench: install ## Measure every workload against what bounds it, three times; ARGS="drain --runs 1 --output results.json".
	$(BIN)/python -m bench $(ARGS)

chaos: install ## Kill everything at random for ten minutes and check every promise; ARGS="--seed 1 --minutes 10".
	$(BIN)/python -m chaos $(ARGS)

mutants: install ## Break the guarantees on purpose, one at a time; a named test must turn red for each.
	$(BIN)/python -m tests.mutants $(ARGS)

lint: install ## Check format, lint, types, imports and the contract.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@sh tools/check_breaking.sh

format: install ## Format the code and the contract.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format -w

generate: install ## Write generated/ anew from proto/.
	sh tools/generate.sh

check-generated: install ## Fail if generated/ is not what proto/ generates.
	sh tools/check_generated.sh

lock: install ## Resolve requirements/*.in into hash-pinned requirements/*.txt.
	sh tools/lock.sh

install: $(VENV)/.installed ## Make the virtual environment with what is locked.

$(VENV)/.installed: requirements/dev.txt pyproject.toml generated/pyproject.toml clients/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "orderflow needs Python 3.11 or newer; set PYTHON=")'
	@echo "making $(VENV) with what is locked (once, a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-e generated -e clients -e .
	@touch $@

tools: install ## Fetch the programs that tests use beside ours, such as grpcurl, promtool and Chromium, where this machine can.
	@$(BIN)/python tools/fetch_tools.py

clean: ## Remove the virtual environment and the development data.
	rm -rf $(VENV) .orderflow .mypy_cache .ruff_cache .pytest_cache
