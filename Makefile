PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint docs format clean

demo: $(VENV)/installed
	$(BIN)/vitscope demo --overwrite

# One thread a process: more would fight for the cores.
test check: export OMP_NUM_THREADS = 1

test: lint docs
	$(BIN)/pytest -n logical

check: lint
	$(BIN)/pytest -n 2 -m fast tests/unit

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed
	$(BIN)/zensical build --clean --strict

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) vitscope-demo site

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
