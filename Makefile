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

.PHONY: install demo test test-all bundled-model lint clean

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

# Trains the bundled model again, from nothing: some five hours on two cores. What is there already is gone on with.
TRAINING ?= demo-training
TRAIN = OMP_NUM_THREADS=1 $(BIN)/etsam-zarr train --half --resume
bundled-model: install
	$(TRAIN) --recipe benchmarks/recipes/demo-256.yaml -o $(TRAINING)/first
	$(TRAIN) --recipe benchmarks/recipes/demo-256-second.yaml --stage 1 --devices 2 \
		--init $(TRAINING)/first/stage1-half.pt -o $(TRAINING)/second
	$(TRAIN) --recipe benchmarks/recipes/demo-256-third.yaml --stage 1 --devices 2 \
		--init $(TRAINING)/second/stage1-half.pt -o $(TRAINING)/third
	$(TRAIN) --recipe benchmarks/recipes/demo-256-third.yaml --stage 2 --devices 2 \
		--init $(TRAINING)/first/stage2-half.pt -o $(TRAINING)/third
	@echo "To put it into the package: python benchmarks/install_bundled.py $(TRAINING)/third/stage1.pt $(TRAINING)/third/stage2.pt"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
