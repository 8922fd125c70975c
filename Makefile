# One word a job. `make train` and `make test` set up everything they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Nothing is compiled to bytecode that no import asks for: half a minute of torch, SymPy and SciPy.
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile
BUILD_INPUTS := pyproject.toml setup.py $(shell find csrc -type f)

.PHONY: install train test bench gpu lint clean

install: $(STAMP)

# torch first and alone: asked for through another package it can come in another, larger build.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 setuptools wheel ninja pybind11
	@touch $@

$(STAMP): $(VENV)/.torch $(BUILD_INPUTS)
	$(PIP) --no-build-isolation -e '.[train,test,bench,lint,triton]'
	@touch $@

train: install
	$(BIN)/fastssl train simclr

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: install
	$(BIN)/fastssl bench

# For a machine with a CUDA device: no virtual environment, no network, only what its Python has.
# PART=tests, bench, steps, sanitizer, codegen or a benchmark's name does a part, LIMIT seconds.
gpu:
	$(PYTHON) bench/gpu.py $(if $(PART),--only $(PART)) $(if $(LIMIT),--limit $(LIMIT))

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf build *.egg-info $(VENV) && find . -name '*.so' -not -path './$(VENV)/*' -delete
