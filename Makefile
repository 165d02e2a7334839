# Everything from a bare Python 3.11+: each target makes the environment it needs.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= runs/demo
JOBS   ?= 2
BIN    := $(VENV)/bin

.PHONY: demo test quick lint types wheel minimum clean

demo: $(VENV)/.installed
	$(BIN)/debm demo --out $(OUT)

# As many processes as JOBS, each with one thread: the tests' networks are too small for two.
test quick: export OMP_NUM_THREADS = 1

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

wheel: $(BIN)/python
	$(BIN)/python scripts/check_wheel.py

minimum: $(BIN)/python
	$(BIN)/python scripts/check_lower_bounds.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "denoising-ebm needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(VENV)/.installed $@
