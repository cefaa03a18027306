# Every target works from a fresh clone: the first one run makes .venv and installs into it.
# ARGS is passed to the program: make train ARGS="--outer sign_maml --seed 1"

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
DOCS_READY := $(VENV)/.installed-docs
PACKAGES := metarl envs agents experiments
LINKS := build/package/metarl
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train benchmark tensorboard check lint types unit claims test test-slow test-faults wheel-test docs links format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The first interpreter that is new enough and can make a virtual environment.
$(PY):
	@for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python -m venv $(VENV)"; exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "error: Python 3.11 or newer, with the venv module, was not found; 'python3 --version' says:" \
		"$$(python3 --version 2>&1)" >&2; \
	exit 1

# setuptools first and no build isolation: what builds the package is pinned like everything else.
$(READY): pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --constraint constraints.txt setuptools
	$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@touch $@

install: $(READY)  ## make .venv with the pinned dependencies (every other target does it first)

train: $(READY)  ## meta-train MAML on the 2D navigation tasks
	$(PY) -m metarl train --env navigation --outer maml --iterations 150 --seed 0 --log-dir runs $(ARGS)

benchmark: $(READY)  ## measure the speed of the parts
	$(PY) -m metarl benchmark $(ARGS)

tensorboard: $(READY)  ## show the curves of runs/
	$(PY) -m tensorboard.main --logdir runs $(ARGS)

check: lint types unit  ## format, lint, types, fast tests and doctests: before every commit

lint: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

# mypy and mkdocstrings do not read how the packages are mapped, so they get a folder of links with the installed layout.
links:
	@rm -rf $(LINKS) && mkdir -p $(LINKS)
	@for path in metarl/*.* metarl/[a-z]*/ envs agents experiments; do ln -s ../../../$$path $(LINKS)/; done

types: $(READY) links
	cd $(dir $(LINKS)) && $(CURDIR)/$(PY) -m mypy --config-file $(CURDIR)/pyproject.toml

# The tests' tensors are too small to be shared by threads, and what runs at a time has the cores to share.
unit claims wheel-test: export OMP_NUM_THREADS ?= 1
unit: $(READY)
	$(PY) -m pytest -q -n auto --dist worksteal tests

claims: $(READY)  ## check the papers' claims in the quick form (the certificates' one is among the tests)
	$(PY) -m metarl theory --quick --out build/claims

test: unit claims wheel-test  ## all tests but the slow ones, and the claims

test-slow: $(READY)  ## the learning tests, minutes each
	$(PY) -m pytest -m slow $(ARGS)

test-faults: export OMP_NUM_THREADS ?= 1
test-faults: $(READY)  ## inject faults into runs (kills, damaged files, ...) and print which they survive: twenty minutes
	$(PY) -m tests.faults $(ARGS)

wheel-test: $(READY)  ## build the wheel, install it elsewhere, train with it
	$(PY) -m pytest -q -m wheel tests/test_wheel.py

$(DOCS_READY): $(READY)
	$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[docs]"
	@touch $@

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS_READY) links  ## build the site of the documentation: build/site/index.html
	$(PY) -m mkdocs build --strict --quiet

format: $(READY)  ## let ruff rewrite the sources
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:  ## remove .venv, caches and build products, but not runs/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
