# Two commands for a fresh machine: `make train` runs the main job, `make test` runs the tests.
# Each makes its virtual environment first. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
FAST := tests/config tests/morl tests/test_method.py tests/ddpo/rules \
	$(patsubst %,tests/ddpo/test_%.py,advantages ddim minibatches normalisations prompts seeding update)

.PHONY: train smoke test test-fast test-serve check same evidence-toy clean

train: $(VENV)/.run-ready
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no mo_train.py $(ARGS)

smoke: $(VENV)/.run-ready
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --quiet mo_train.py --config config/smoke.py $(ARGS)
	@echo "The installation works. That was a smoke test, too short to learn anything: now 'make train'."

test: $(VENV)/.dev-ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

# While editing: tests of the method, its numbers and its settings, without the programs.
test-fast: $(VENV)/.dev-ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --quiet $(FAST) $(ARGS)

# The live app with gradio, in its own environment: gradio needs pillow < 13.
test-serve: $(VENV)-serve/.ready
	$(VENV)-serve/bin/python -m pytest tests/front/test_serve.py $(ARGS)

check: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m tools.prose

# Checks that results still equal a commit's, bit for bit: make same COMMIT=HEAD~1.
COMMIT ?= HEAD
same: $(VENV)/.run-ready
	$(BIN)/python -m tools.same $(COMMIT) $(ARGS)

# Every method on a model of 8 numbers, with 8 seeds each: ten minutes on one core, resumable.
evidence-toy: $(VENV)/.run-ready
	$(BIN)/python -m benchmarks.toy --folder runs/evidence-toy $(ARGS)

$(VENV)/.run-ready: requires.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requires.txt
	touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready requires-dev.txt
	$(BIN)/python -m pip install --quiet -r requires-dev.txt
	touch $@

$(VENV)-serve/.ready: requires.txt requires-serve.txt requires-dev.txt
	$(PYTHON) -m venv $(VENV)-serve
	$(VENV)-serve/bin/python -m pip install --quiet -r requires-serve.txt -r requires-dev.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-serve .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
