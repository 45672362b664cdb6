# Everything a fresh machine needs is set up by these targets; no step by hand before them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's CPU build unless TORCH=cuda: without the constraints pip takes several GB of CUDA libraries.
ifeq ($(TORCH),cuda)
INSTALL_ENV := SAM2_BUILD_CUDA=0
else
CONSTRAINTS := $(CURDIR)/constraints-cpu.txt
INSTALL_ENV := PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) SAM2_BUILD_CUDA=0
endif

.PHONY: install demo test test-all lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL_ENV) $(BIN)/python -m pip install --disable-pip-version-check -q -e ".[test]"
	touch $@

demo: install
	$(BIN)/etsam-zarr demo

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile

test-all: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m ""

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
