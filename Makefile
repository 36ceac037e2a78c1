PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-cluster install check base clean

## demo: the main job on the embedded base and the shipped television pictures
demo: install
	$(BIN)/dovetail run examples/televisions --run demo

## test: the whole suite, two files at a time
test: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not cluster"

## test-cluster: what Ray is slow to start: lost workers, several processes behind one address; two minutes more
test-cluster: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m cluster

## install: .venv with all that demo and test need; .venv/bin/dovetail is the command
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "open_clip_torch==3.3.0" # for CLIP's words
	touch $@

## check: style, types and the direction of imports
check: install
	$(BIN)/ruff check src tests recipes benchmarks
	$(BIN)/ruff format --check src tests recipes benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

## base: train the embedded base again from named packages (hours on two cores; resumable)
base: install
	$(BIN)/python -m recipes.embedded_base

clean:
	rm -rf demo runs build
