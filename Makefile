# Every target does its own set-up in .venv: Python 3.11 or newer, pip and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo app test test-all test-faults test-gpu bench-gpu check docs peers clean

demo: $(READY)  ## draw pictures with the shipped model
	$(BIN)/dalle sample "a red heart" "a smiling face" "a cat" "a tomato" "a guitar" "een groene appel" \
		--keep 6 --out demo.png

app: $(READY)  ## serve a page to draw, complete, paint and search
	$(BIN)/dalle app

test: check  ## lint, types, layers, tests
	$(BIN)/python -m pytest

test-all: check  ## also the slow tests, among them those of the website and the notebooks
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs,notebooks]'
	$(BIN)/python -m pytest -m ""

test-faults: $(READY)  ## attacks: kills, full disks, damaged and hostile files, threads; prints a table of figures
	FAULTS=full $(BIN)/python -m pytest -m "" tests/faults

test-gpu: $(READY)  ## what needs a GPU; skipped without one
	$(BIN)/python -m pytest -m "" tests/gpu

bench-gpu: $(READY)  ## tests and figures of a GPU, into runs/gpu; ends with one line without one
	PYTHON=$(CURDIR)/$(BIN)/python sh benchmarks/gpu.sh runs/gpu

check: $(READY)  ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,app,emoji,judge,eval,hub,tokenizers,tensorboard,heif,parquet,remote,serve,unclip]'
	touch $(READY)

docs: $(READY)  ## the website, into site/; a warning is an error
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

peers: $(READY)  ## what dalle bench and tests compare with; some ask for packages that cannot be built any more
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' ftfy attrs requests
	$(BIN)/python -m pip install -q --no-deps dalle-pytorch==1.6.6 axial-positional-embedding==0.3.12 \
		rotary-embedding-torch==0.9.1 dall-e==0.1 taming-transformers-rom1504==0.0.6 rudalle==1.1.3

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
