# Two commands do everything on a machine that has Python 3.11 and nothing else: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# Real data that the project does not ship; tests that need it skip with a reason where it is absent.
export LUTHIER_DATA ?= $(wildcard $(abspath ../shared/data))
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test slow device lint bench docs check clean

demo: $(READY)
	$(BIN)/luthier demo

test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(DEV)
	$(BIN)/python -m pytest -m slow

device: $(DEV)
	$(BIN)/python -m pytest -m device

lint: $(DEV)
	$(BIN)/ruff check luthier tests benchmarks scripts
	$(BIN)/ruff format --check luthier tests benchmarks scripts
	$(BIN)/mypy

check: $(DEV)
	$(BIN)/luthier check --record

bench: $(READY)
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.run

docs: $(DEV)
	$(BIN)/python scripts/docs.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $(READY)

$(DEV): $(READY)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,eval]"
	touch $(DEV)

clean:
	rm -rf $(VENV) build dist runs
