# Two commands: `make demo` and `make test`. Each makes its own virtual environment; nothing else on the machine changes.
# SYSTEM_TORCH=1 uses the Python packages that are already installed instead.
PYTHON ?= python3
VENV ?= .venv
SYSTEM_TORCH ?=
OUT ?= out

ifeq ($(SYSTEM_TORCH),)
BIN := $(VENV)/bin/
RUN := $(VENV)/bin/python -m rnope
READY := $(VENV)/.installed
else
BIN :=
RUN := PYTHONPATH=src $(PYTHON) -m rnope
READY :=
endif

.PHONY: demo fair test test-slow lint clean

demo: $(READY)  ## the comparison on two CPU cores, about ten minutes
	$(RUN) compare cpu-demo --out $(OUT)/cpu-demo

fair: $(READY)  ## every variant, three seeds, swept alike: about an hour
	$(RUN) compare cpu-fair --out $(OUT)/cpu-fair

lint: $(READY)
	$(BIN)ruff check src tests
	$(BIN)ruff format --check src tests
	$(BIN)mypy

test: lint
	$(BIN)python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)python -m pytest -m "slow and not gpu"

# torch first and exact, so that pip's own settings (an index of CPU builds, a folder of wheels) decide which build it is.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rnope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check "torch==2.13.0"
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
