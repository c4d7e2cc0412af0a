PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Files of tests/unit that take two seconds or less.
FAST := claims_lines claims_numbers claims_trends config covariates decoding distribution \
	explanation image_verdict jackknife ledger masks one_shot parquet_rows patch_norms \
	preprocessing_values proof_summary rank_correlation records regression resources \
	shape_checks storage stores tensor_files token_summary verdict vocabulary

LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

.PHONY: demo test check lint docs format clean

demo: $(VENV)/installed-demo
	$(BIN)/vitscope demo --overwrite

# One thread a process: more would fight for the cores.
test check: export OMP_NUM_THREADS = 1

# Else every process that tests start would compile vitscope again.
unexport PYTHONDONTWRITEBYTECODE

# Linters run beside the tests, and are told of after them.
test: $(VENV)/installed-dev
	@($(LINT)) >$(VENV)/lint.log 2>&1 & \
	$(BIN)/pytest -n logical; tests=$$?; \
	wait $$!; lint=$$?; cat $(VENV)/lint.log; exit $$((tests | lint))

check: lint
	$(BIN)/pytest -q -n 2 $(FAST:%=tests/unit/test_%.py)

lint: $(VENV)/installed-dev
	$(LINT)

docs: $(VENV)/installed-dev
	$(BIN)/zensical build --clean --strict

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) vitscope-demo site

# The package with an extra; one after the other, all in the same environment.
$(VENV)/installed-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$*]'
	touch $@
