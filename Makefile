# Two commands: `make demo` and `make test`. Each makes its own virtual environment; nothing else on the machine changes.
# SYSTEM_TORCH=1 uses the Python packages that are already installed instead.
PYTHON ?= python3
VENV ?= .venv
SYSTEM_TORCH ?=
OUT ?= out

ifeq ($(SYSTEM_TORCH),)
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
else
PY := $(PYTHON)
READY :=
export PYTHONPATH := src
endif
RUN := $(PY) -m rnope

.PHONY: demo fair test test-slow test-gpu lint clean

demo: $(READY)  ## the comparison on two CPU cores, about ten minutes
	$(RUN) compare cpu-demo --out $(OUT)/cpu-demo

fair: $(READY)  ## every variant, three seeds, swept alike: about an hour
	$(RUN) compare cpu-fair --out $(OUT)/cpu-fair

lint: $(READY)
	$(PY) -m ruff check src tests
	$(PY) -m ruff format --check src tests
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-slow: $(READY)
	$(PY) -m pytest -m "slow and not gpu"

test-gpu: $(READY)  ## on a machine with a GPU; SYSTEM_TORCH=1 where its torch is the right one
	$(PY) -m pytest -m gpu

# torch first and exact, so that pip's own settings (an index of CPU builds, a folder of wheels) decide which build it is.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rnope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check "torch==2.13.0"
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
