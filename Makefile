# make demo   classify the packaged images with the packaged model, offline, and draw a picture
# make test   run the tests
# Each sets up .venv by itself; a second run is quick.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=

.PHONY: demo test lint native clean

demo: .venv/.demo native
	$(BIN)/natten-zoo demo --out build/demo.png

test: .venv/.dev native
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/typecheck.py

# Compiles ops/native where there is a C++20 compiler; everything works without it, slower on a CPU.
native: .venv/.demo
	@$(BIN)/python scripts/build_native.py --if-possible

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip

.venv/.demo: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e ".[viz]"
	@touch $@

.venv/.dev: pyproject.toml | .venv/.demo
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
