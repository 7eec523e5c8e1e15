# Kintsugi. `make demo` runs the main job, `make test` passes the tests; both set up all they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests mostly wait for servers, so two processes take little more than half of the time, on two cores too.
PROCESSES ?= 2
# Roles and commands start hundreds of times; compiled once, each start takes a fifth less.
export PYTHONDONTWRITEBYTECODE :=

# First seed of `make soak`; those before it are run by `make test`.
SEED ?= 2000

.PHONY: help setup check test scenarios soak demo bench up down clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## make the virtual environment from hash-locked requirements

$(STAMP): requirements/dev.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) ops/prerequisites.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . --editable client
	@touch $@

lock: ## renew requirements/*.lock (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements/runtime.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --extra stack pyproject.toml -o requirements/stack.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --extra stack --extra dev pyproject.toml -o requirements/dev.lock

check: $(STAMP) ## formatting, lint, types, import rule, schemas
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/kintsugi schemas lint && $(BIN)/kintsugi schemas check --offline

# Files in their order, else those of few but long tests would come last; so the many short ones of tests/unit fill the end.
test: check ## everything CI runs: check, then all tests on the real stack
	$(BIN)/pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

scenarios: $(STAMP) ## play the labelled scenarios on the pure engine and print the report
	$(BIN)/python -m tests.scenarios

soak: $(STAMP) ## run seeds of the simulation until stopped (SEED=N: from this one on)
	$(BIN)/python -m tests.simulation --seed $(SEED)

demo: $(STAMP) ## run the main job: 200 workflows, seeded faults, repaired on the real stack
	$(BIN)/python -m examples.demo

bench: $(STAMP) ## measure and store under bench/results/
	$(BIN)/python -m bench

up: $(STAMP) ## start the local stack
	$(BIN)/kintsugi up

down: $(STAMP) ## stop the local stack
	$(BIN)/kintsugi down

clean: ## stop the stack and delete its data and the virtual environment
	-[ -x $(BIN)/kintsugi ] && $(BIN)/kintsugi down
	rm -rf .kintsugi $(VENV) build dist
