# make demo   makes the environment, installs, and runs the main job on pictures drawn on the spot
# make test   makes the environment with what the tests need, and runs them all
# make check  style, types, and who may import whom

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.installed-dev

.PHONY: demo test check clean

demo: $(INSTALLED)
	$(BIN)/curate recipe=demo

test: $(TESTED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(TESTED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info
