# Two commands for a fresh machine: `make train` runs the main job, `make test` passes the tests.
# Each makes its own virtual environment first. PYTHON picks the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train smoke test check clean

train: $(VENV)/.run-ready
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no mo_train.py $(ARGS)

smoke: $(VENV)/.run-ready
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --quiet mo_train.py --config config/smoke.py $(ARGS)

test: $(VENV)/.dev-ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.run-ready: requires.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requires.txt
	touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready requires-dev.txt
	$(BIN)/python -m pip install --quiet -r requires-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
