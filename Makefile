# Two commands do everything on a machine that has Python 3.11 and nothing else: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Real data that the project does not ship; tests that need it skip with a reason where it is absent.
export LUTHIER_DATA ?= $(wildcard $(abspath ../shared/data))
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test slow device lint bench docs check clean

demo: $(STAMP)
	$(BIN)/luthier demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

device: $(STAMP)
	$(BIN)/python -m pytest -m device

lint: $(STAMP)
	$(BIN)/ruff check luthier tests benchmarks scripts
	$(BIN)/ruff format --check luthier tests benchmarks scripts
	$(BIN)/mypy

check: $(STAMP)
	$(BIN)/luthier check --record

bench: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.run

docs: $(STAMP)
	$(BIN)/python scripts/docs.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,eval]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist runs
