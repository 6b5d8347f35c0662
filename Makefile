# Needs make and Python 3.11 or newer, nothing else: every target sets itself up in .venv from requirements.lock.
#   make sweep ARGS="study.trials=50 trainer.epochs=5"      search with any Hydra overrides
#   make ui                                                look at the runs, at http://127.0.0.1:5000
#   make test ARGS="-k config"                              the tests, with any of pytest's arguments
PYTHON ?= python3
UV ?= uv
PORT ?= 5000
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --no-input

.PHONY: sweep test lint ui setup lock clean
.DEFAULT_GOAL := sweep
.DELETE_ON_ERROR:

sweep: setup
	@$(PY) -m mnistexp sweep $(ARGS)

test: setup
	@$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

ui: setup
	@$(PY) -m mnistexp ui --port $(PORT) $(ARGS)

setup: $(READY)

# Two steps, so that a change of pyproject.toml alone costs seconds.
$(READY): $(LOCKED) pyproject.toml mnistexp/__init__.py
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# --no-deps: the lock is complete, so there is nothing to resolve. --no-compile, then compileall on every core:
# without bytecode TensorFlow imports in 13 s instead of 5, and PYTHONDONTWRITEBYTECODE would keep it from ever being written.
$(LOCKED): requirements.lock
	@command -v $(firstword $(PYTHON)) >/dev/null 2>&1 || \
	  { echo "make: there is no $(firstword $(PYTHON)) here; install Python 3.11 or newer, or name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: mnistexp needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1); name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) from requirements.lock, once: downloads 0.7 GB, takes 3 GB of disk and 1 to 4 minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes --no-deps --no-compile --requirement requirements.lock
	@$(PY) -m compileall -q -j 0 $(VENV)/lib || true # some packages ship a template or a test that isn't valid Python
	@touch $@

lock:
	@command -v $(UV) >/dev/null || { echo "make: locking needs uv; pip install uv, or name it: make lock UV=path/to/uv" >&2; exit 1; }
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-config --custom-compile-command "make lock" --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
