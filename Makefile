# Two commands for a newcomer: `make search` and `make test`. Each makes .venv by itself, from constraints.txt.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: search test check venv

search: $(VENV)/.ready
	$(BIN)/python run_search.py

test: $(VENV)/.ready
	$(BIN)/ruff check ddray tests benchmarks run_search.py
	$(BIN)/mypy ddray
	$(BIN)/python -m pytest

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@
