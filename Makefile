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

.PHONY: demo fair full h200 test test-slow test-gpu bench bench-gpu lint clean

demo: $(READY)  ## the comparison on two CPU cores, about ten minutes
	$(RUN) compare cpu-demo --out $(OUT)/cpu-demo

fair: $(READY)  ## every variant, three seeds, swept alike: about an hour
	$(RUN) compare cpu-fair --out $(OUT)/cpu-fair

full: $(READY)  ## every variant, control, table and figure: two to four hours
	$(RUN) compare cpu-full --out $(OUT)/cpu-full

# On one GPU, in parts of at most ten minutes: run it again until it has written its page (three times on an H200).
MINUTES ?= 8
h200: $(READY)  ## make h200 CORPUS=text.jsonl.gz; SYSTEM_TORCH=1 where its torch is the right one
	$(RUN) compare h200 --corpus $(CORPUS) --out $(OUT)/h200 --minutes $(MINUTES)

lint: $(READY)
	$(PY) -m ruff check src tests benchmarks
	$(PY) -m ruff format --check src tests benchmarks
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-slow: $(READY)
	$(PY) -m pytest -m "slow and not gpu"

test-gpu: $(READY)  ## on a machine with a GPU; SYSTEM_TORCH=1 where its torch is the right one
	$(PY) -m pytest -m gpu

bench: $(READY)  ## the CPU tables of inference; a few hours on two quiet cores, and it goes on where it stopped
	$(RUN) bench attention --out $(OUT)/bench-attention.json
	$(RUN) bench memory --out $(OUT)/bench-memory.json
	$(RUN) bench decode --out $(OUT)/bench-decode.json
	$(RUN) bench prefill --out $(OUT)/bench-prefill.json
	$(RUN) bench train --out $(OUT)/bench-train.json

# Size 8b on one GPU, in parts of at most ten minutes: make bench-gpu PART=2. Part 3 goes on from part 2's file in OUT.
# Part 4 is training, with as many layers as fit beside 128k tokens (16 of 32, activations computed again; estimated).
# To try it without a GPU: make bench-gpu GPU="--size tiny --device cpu --quick" SHORT=2k LONG=4k TRAIN=256,512 GPU_CHUNK=512 GPU_KV=2
PART ?= 1
GPU ?= --size 8b --device cuda
GPU_CHUNK ?= 8192
GPU_KV ?= 8
SHORT ?= 132k
LONG ?= 990k
TRAIN ?= 64k,128k
GPU_LAYERS ?= 16
GPU_RUN = $(RUN) bench $(1) $(GPU) --dtype bf16 --threads 1 --chunk $(GPU_CHUNK) --out $(OUT)/bench-gpu-$(2).json
bench-gpu: $(READY)
ifeq ($(PART),1)
	$(call GPU_RUN,attention,attention) --lengths 32k --peers full --kv-heads $(GPU_KV) --stop-after 120
	$(call GPU_RUN,prefill,latency) --lengths $(SHORT) --new-tokens 96 --peers full --stop-after 240
	$(call GPU_RUN,decode,decode) --lengths $(SHORT) --peers full --ways plain --stop-after 120
else ifeq ($(PART),2)
	$(call GPU_RUN,prefill,latency) --lengths $(LONG) --new-tokens 8 --peers none --repeats 1 --stop-after 400
	$(call GPU_RUN,decode,decode) --lengths $(LONG) --peers none --ways plain --stop-after 120
else ifeq ($(PART),3)
	$(call GPU_RUN,prefill,latency) --lengths $(LONG) --new-tokens 8 --peers full --repeats 1 --stop-after 570
else
	$(call GPU_RUN,train,train) --layers $(GPU_LAYERS) --lengths $(TRAIN) --ways mixed,fp8 --peers full --checkpoint --compile --repeats 1 --stop-after 560
endif

# torch first and exact, so that pip's own settings (an index of CPU builds, a folder of wheels) decide which build it is.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rnope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check "torch==2.13.0"
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
