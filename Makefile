# make demo        segment the demo case: out/demo/{segmentation.npz,report.json,preview.png,scores.json}
# make test        run the tests but for the slow ones (installs torch)
# make test-all    run all tests
# make test-hostile  run them as on a machine that is least like a developer's
# make lint        style and types
# make train-demo  train the demo model again (about ninety minutes) and put it in engines/demo
# make clean       remove what these made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
# The CPU build serves; where pip knows one on disk, this line finds it.
TORCH := torch==2.13.0
DEMO := engines/demo
CASES := $(DEMO)/cases
PYTEST_ARGS ?=
# A process a core; the tests of a file stay together, because they share what is slow to make.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := demo
.PHONY: demo demo-lesions test test-all test-hostile lint clean train-demo

demo: out/demo/scores.json

demo-lesions: out/demo-lesions/scores.json

out/demo/scores.json: CASE := ct_anatomy
out/demo-lesions/scores.json: CASE := ct_liver_tumors
out/%/scores.json: $(VENV)/.demo FORCE
	$(BIN)/medals-rt run --bundle $(DEMO) \
	  --input $(CASES)/$(CASE).npz --prompts $(CASES)/$(CASE).prompts.json \
	  --output $(@D)/segmentation.npz --report $(@D)/report.json --preview $(@D)/preview.png
	$(BIN)/medals-rt evaluate $(@D)/segmentation.npz $(CASES)/$(CASE).npz --json $@

FORCE:

test: $(VENV)/.test
	$(PYTEST) $(PYTEST_ARGS)

test-all: $(VENV)/.test
	$(PYTEST) -m '' $(PYTEST_ARGS)

test-hostile: $(VENV)/.test
	PYTHON=$(BIN)/python tests/hostile.sh $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train-demo: $(VENV)/.test
	$(BIN)/python -m demo_training --out runs/demo
	$(BIN)/python -m demo_training.demo --run runs/demo --out $(DEMO)

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find medals_rt medals_export medals_serve demo_training tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "needs Python 3.11 to 3.13: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,preview]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) '$(TORCH)'
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --editable '.[dev]'
	touch $@
