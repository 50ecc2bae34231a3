# PYTHON=/path/to/python3.12 chooses the interpreter that .venv is made with.
PYTHON ?=
BIN := .venv/bin
CODE := internvideo_jax kernels configs launch notebooks tests setup.py
PACKAGES := .mypy_cache/installed

.PHONY: venv demo test test-slow faults fuzz lint clean

venv: .venv/installed

.venv/installed: pyproject.toml requirements.txt setup.py
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python); do \
	    if $$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	      echo "Making .venv with $$($$python --version)"; \
	      exec $$python -m venv --clear .venv; \
	    fi; \
	  done; \
	  echo "Expected Python 3.11 or newer, found $$($(or $(PYTHON),python3) --version 2>&1 | tail -n 1)." \
	    "Install one, or name one: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi
	@# setuptools has two screens of general remarks on every editable installation. What is imported
	@# compiles then, the rest need not.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile \
	  --editable '.[dev]'
	@touch $@

# The dev extra's libtpu looks for a TPU, in vain and aloud, unless a platform is named.
demo: .venv/installed
	JAX_PLATFORMS=$${JAX_PLATFORMS-cpu} $(BIN)/internvideo-jax demo

# Most of the time goes into compiling small programs: faster, to slower ones, and those of one file
# of tests by one process, which then compiles none twice.
test: .venv/installed
	JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -n 2 --dist=loadfile -m "not slow"

test-slow: .venv/installed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 -m slow

# What befalls runs, N times in a row, from draw FIRST on; ends with the first failure.
faults: .venv/installed
	@for number in $$(seq $(or $(FIRST),0) $$(($(or $(FIRST),0) + $(or $(N),20) - 1))); do \
	  echo "faults of draw $$number"; \
	  FAULTS=$$number JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -x tests/training/test_faults.py \
	    tests/training/test_faults_on_hosts.py tests/launch/test_train_on_hosts.py || exit 1; \
	done

# N damaged and hostile inputs for the readers, from number FIRST on; faults are kept in fuzz/.
fuzz: .venv/installed
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.fuzz --inputs=$(or $(N),100000) --first=$(or $(FIRST),0) --output=fuzz

# mypy follows neither our import finder nor setuptools' one, hence links in the installed layout.
lint: .venv/installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	@rm -rf $(PACKAGES) && mkdir -p $(PACKAGES)/internvideo_jax
	@ln -s $(CURDIR)/internvideo_jax/* $(CURDIR)/kernels $(CURDIR)/configs $(CURDIR)/launch $(PACKAGES)/internvideo_jax/
	cd $(PACKAGES) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p internvideo_jax

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
