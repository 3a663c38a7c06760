# Everything that a person or CI does with this project. `make setup` first, or any target: each
# sets up what it needs. For a CPU-only torch where pip would bring CUDA: UV_TORCH_BACKEND=cpu make setup
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
JOBS ?= auto
IMAGE ?= bids_perfdeficit:latest
# docker.io/library/debian:trixie-slim gives an image with Python 3.13
BASE_IMAGE ?= docker.io/library/debian:bookworm-slim

.PHONY: help setup demo test coverage test-slow check format lock docs image image-test sbom dist \
	dist-test clean

help:
	@echo 'setup  a virtual environment from the lock    demo  the main job on the built-in phantom'
	@echo 'test   the quick suite                        test-slow  the rest of it'
	@echo 'check  style, types, layers, doctests             docs  the documentation    lock  pin anew'
	@echo 'image  the container image           image-test  run it as users do'
	@echo 'dist   wheel and sdist               dist-test  the demo in an environment with the wheel'
	@echo 'sbom   what the image holds, in sbom.cdx.json (CycloneDX)'

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet uv
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
		--constraints constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python -m bids_perfdeficit.cli.demo $(DEMO)

test: setup
	$(BIN)/pytest -n $(JOBS) -m 'not slow'

# What the tests reach in this process; commands that they start are not counted.
coverage: setup
	$(BIN)/pytest -n $(JOBS) -m 'not slow' --cov bids_perfdeficit --cov-report term:skip-covered

test-slow: setup
	$(BIN)/pytest -n $(JOBS) -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/pytest -q --doctest-modules --ignore bids_perfdeficit/perfusion/_kernels.py bids_perfdeficit

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One lock for every Python. Pins stay unless LOCK says otherwise, e.g. LOCK=--upgrade. What torch
# brings for a GPU is not pinned, so that CPU or CUDA stays the installer's choice.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --fork-strategy requires-python \
		--python-version 3.11 --extra dev --no-annotate --no-header $(LOCK) \
		--output-file constraints.txt pyproject.toml
	sed -i -E '/^(nvidia|cuda)-|^triton==/d' constraints.txt

docs: setup
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

image: setup
	PYTHON=$(BIN)/python IMAGE=$(IMAGE) BASE_IMAGE=$(BASE_IMAGE) scripts/build_image.sh

image-test: setup
	$(BIN)/python scripts/test_image.py $(IMAGE)

# The wheel is made from the sdist, so that installing one tests both.
dist: setup
	rm -rf dist
	$(BIN)/uv build --quiet

# What a user of `pip install` has: an empty environment, the wheel, the demo.
dist-test: dist
	rm -rf build/dist-test
	$(PYTHON) -m venv build/dist-test
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python build/dist-test/bin/python \
		--constraints constraints.txt dist/*.whl
	cd build/dist-test && bin/python -m bids_perfdeficit.cli.demo demo

sbom: setup
	$(BIN)/python scripts/sbom.py $(IMAGE) >sbom.cdx.json

clean:
	rm -rf sbom.cdx.json $(DEMO) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache
