# make demo   text from the shipped checkpoint      make test   the whole suite
# make lint   ruff and mypy                         make clean  forget the environment
#
# PYTHON     the interpreter to start from; a torch that it has is used as it is
# TORCH      what to install where it has none; without an NVIDIA driver the CPU's release
PYTHON ?= python3
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
VENV ?= .venv

BIN := $(VENV)/bin

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/adept-fast generate --chat --prompt "What is the capital of France?"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

# The environment sees the caller's packages only if torch is among them.
$(VENV)/bin/python:
	@if $(PYTHON) -c 'import torch' 2>/dev/null; \
	then $(PYTHON) -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi

$(VENV)/torch: | $(VENV)/bin/python
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --progress-bar off -q "$(TORCH)"
	@touch $@

$(VENV)/installed: pyproject.toml setup.py $(VENV)/torch
	$(BIN)/python -m pip install --progress-bar off -q -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml setup.py $(VENV)/torch
	$(BIN)/python -m pip install --progress-bar off -q -e '.[test]'
	@touch $@ $(VENV)/installed
