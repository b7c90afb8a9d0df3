# Every target does its own set-up: on a fresh machine `make demo` and `make test` work as they are.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: setup demo check test test-all clean

setup: $(STAMP)

# venv + pip on purpose: here pip takes torch from the local disk, uv would download it (docs/decisions/0001).
# torch first: everything else then finds it installed and adds nothing.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch>=2.10" torchvision
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/deformable-detr demo --output demo_output

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP)
	$(BIN)/pytest

test-all: $(STAMP)
	$(BIN)/pytest -m "slow or not slow"

clean:
	rm -rf .venv build dist demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
