# make demo   makes the environment, installs, and runs the main job on pictures drawn on the spot
# make test   makes the environment with what the tests need, and runs them all
# make check  style, types, and who may import whom
# make test-gpu-signatures  installs RAPIDS (5 GB) beside, and holds our calls against its signatures; needs no GPU

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.installed-dev

.PHONY: demo test check test-gpu-signatures clean

demo: $(INSTALLED)
	$(BIN)/curate recipe=demo

test: $(TESTED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-gpu-signatures:
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check pytest pytest-timeout pydantic \
	  $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['gpu'])")
	.venv-gpu/bin/python -m pytest --noconftest tests/test_gpu_signatures.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(TESTED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(INSTALLED)

clean:
	rm -rf $(VENV) .venv-gpu build dist *.egg-info
