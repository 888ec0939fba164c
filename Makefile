# `make train` and `make test` set up what they need in .venv, from the Python
# package index alone. PYTHON chooses the interpreter (3.11 to 3.13). On a machine
# with NVIDIA GPUs, `make setup LOCK=requirements-cuda13.lock` adds CUDA.

PYTHON ?= python3
LOCK ?= requirements.lock
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup setup-gpu-compile train test test-all lint lock

setup: $(READY)

$(READY): pyproject.toml $(LOCK)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

# Beside .venv, for `python tools/comms.py CONFIG.py --gpus 128x8`: XLA compiles for
# NVIDIA GPUs on machines that have none.
setup-gpu-compile:
	$(MAKE) setup VENV=.venv-gpu LOCK=requirements-cuda13.lock

train: setup
	$(BIN)/hfdist train configs/paper/hf_gauss_newton.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The lock files hold every dependency with its hashes; `uv` comes from the index too.
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --no-header --extra dev --extra plots --extra tensorboard -o requirements.lock
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --no-header --extra dev --extra plots --extra tensorboard --extra cuda13 \
	  -o requirements-cuda13.lock
