# Every target does its own set-up: on a fresh machine `make demo` and `make test` work as they are.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

# What the CPU operator is built from. An editable install serves Python files as they are, but not these: when one
# changes, the next `make` installs again (ninja compiles only what changed).
NATIVE := CMakeLists.txt $(wildcard src/deformable_detr/ops/csrc/*)

.PHONY: setup demo check test test-all test-lowest test-import docs wheel native clean

setup: $(STAMP)

# venv + pip on purpose: here pip takes torch from the local disk, uv would download it (docs/decisions/0001).
# torch first: everything else then finds it installed and adds nothing. No build isolation: it would fetch torch
# a second time, only for its headers.
$(STAMP): pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch>=2.10" torchvision "scikit-build-core>=0.10" cmake ninja
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/deformable-detr demo --output demo_output

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# Two processes of one thread each: a tiny model's kernels are too short to share among threads.
test: $(STAMP)
	$(BIN)/pytest -n 2

test-all: $(STAMP)
	$(BIN)/pytest -n 2 -m "slow or not slow"

# The suite with the lowest versions that pyproject.toml allows, in an environment of its own: uv resolves, pip
# installs. LOWEST_PYTHON: the oldest Python, for which the oldest releases have wheels.
LOWEST_PYTHON ?= python3.11
LOWEST := .venv-lowest
test-lowest:
	test -x $(LOWEST)/bin/python || $(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --upgrade pip uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --python $(LOWEST)/bin/python --extra dev \
		--no-emit-package deformable-detr pyproject.toml --output-file build/lowest.txt
	$(LOWEST)/bin/pip install --quiet --requirement build/lowest.txt "scikit-build-core>=0.10" cmake ninja
	$(LOWEST)/bin/pip install --quiet --no-build-isolation --no-deps --editable .
	$(LOWEST)/bin/pytest -n 2

# What every platform and Python must do without extras and without a compiler, in a few seconds: import the package,
# print the help, detect something. PYTHON: an interpreter that has the package.
test-import:
	$(PYTHON) scripts/check_installation.py

# The site of docs/ into build/site, readable from the disk; --strict: a broken link is an error.
docs: $(STAMP)
	$(BIN)/python docs/tables.py
	$(BIN)/zensical build --clean --strict

# One wheel for every Python ≥ 3.11 and torch ≥ 2.10 on this platform; fails where it cannot hold the CPU operator.
wheel: $(STAMP)
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist \
		--config-settings=cmake.define.DEFORMABLE_DETR_NATIVE=ON .

# The CPU operator alone, into the source tree: for work on the kernels with PYTHONPATH=src. PREFIX=DIR to put it elsewhere.
PREFIX ?= src
native:
	cmake -S . -B build/native -G Ninja -DDEFORMABLE_DETR_NATIVE=ON -DPython3_EXECUTABLE=$$(command -v $(BIN)/python || command -v $(PYTHON))
	cmake --build build/native
	cmake --install build/native --prefix $(PREFIX)

clean:
	rm -rf .venv .venv-lowest build dist demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
