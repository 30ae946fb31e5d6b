# `make` lists the targets. All of them work in a virtual environment that they
# build where it is missing: .venv, or VENV=..., with the Python found on PATH,
# or PYTHON=... .

VENV ?= .venv
DEMO_DIR ?= runs/demo
ARGS ?=
# Of tests: one process a core, but for four at most, as each takes 1 to 2 GB.
PARALLEL := -n auto --maxprocesses=4 --dist worksteal

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -qq --no-compile

# The environment is rebuilt where it is missing or does not run, where PYTHON
# asks for another version, and where a set-up was cut short: VENV.unfinished
# stands beside it while one is at work, as a package that is half installed
# looks whole to pip.
UNFINISHED := $(VENV).unfinished
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
HAVE := $(shell $(BIN)/python $(VERSION) 2>/dev/null)
WANT := $(if $(PYTHON),$(shell $(PYTHON) $(VERSION) 2>/dev/null),$(HAVE))
REBUILD := $(if $(HAVE),$(if $(filter $(WANT),$(HAVE)),$(wildcard $(UNFINISHED)),yes),yes)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint size format bench bench-peers bench-input bench-prepare clean FORCE
.SECONDARY:

help: ## List these targets.
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' \
	  $(firstword $(MAKEFILE_LIST))
	@echo "Variables: VENV=$(VENV) PYTHON=$(PYTHON) DEMO_DIR=$(DEMO_DIR) ARGS=$(ARGS)"

setup: $(VENV)/.installed-core ## Build .venv from requirements.txt.
	@:

setup-%: $(VENV)/.installed-% ## Add requirements-%.txt: dev, gpu, tpu, gcs, hub, export, metrics, notebook, tensorflow.
	@:

demo: setup ## Train a small Mixer on this machine, into DEMO_DIR.
	$(BIN)/python -m mixer demo --workdir=$(DEMO_DIR) $(ARGS)

test: setup-dev ## Run the tests, but for the slow ones. ARGS=-x ...
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-all: setup-dev ## Run all tests.
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: setup-dev ## Check style and types; changes nothing.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m basedpyright --pythonpath $(BIN)/python
	$(BIN)/shellcheck --external-sources launch/*.sh benchmarks/gpu.sh launch/slurm/* .ci/run

size: setup ## Count lines, files and floors of imports; fails above limits.
	$(BIN)/python tests/size.py

format: setup-dev ## Sort imports, mend what can be mended, format.
	$(BIN)/python -m ruff check --fix-only .
	$(BIN)/python -m ruff format .

bench: setup ## Measure all speed here, print tables, write results. ARGS=--only=step ...
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: setup-export ## Measure our step beside timm's and, by ARGS=--authors=DIR, the authors'.
	$(BIN)/python -m benchmarks.peers $(ARGS)

bench-input: setup ## Measure the input pipeline beside its peers.
	$(BIN)/python -m benchmarks.input $(ARGS)

bench-prepare: setup ## Measure the preparation of a synthetic ImageNet-21k.
	$(BIN)/python -m benchmarks.prepare $(ARGS)

clean: ## Remove caches and build outputs; .venv and runs/ stay.
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . \( -name '.venv*' -o -name .git -o -name runs \) -prune \
	  -o -type d -name __pycache__ -exec rm -rf {} +

# Prints the Python to build with, or says why there is none.
FIND_PYTHON = \
  for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
      2>/dev/null || continue; \
    if "$$python" -c 'import ensurepip, venv' 2>/dev/null; \
      then echo "$$python"; exit 0; fi; \
    bare=$$python; \
  done; \
  if [ -n "$$bare" ]; \
    then echo "$$bare cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; \
    else echo "No Python 3.11 to 3.14 found as $(or $(PYTHON),python3 or python3.N on PATH): install one, or name one, as in make setup PYTHON=/usr/local/bin/python3.12." >&2; \
  fi; exit 1

$(VENV)/.installed-core: requirements.txt constraints.txt $(if $(REBUILD),FORCE)
	@mkdir -p $(dir $(VENV))
ifneq ($(REBUILD),)
	@python=$$($(FIND_PYTHON)) || exit 1; \
	echo "Building $(VENV) with $$python ($$("$$python" --version))"; \
	touch $(UNFINISHED); "$$python" -m venv --clear $(VENV)
endif
	@touch $(UNFINISHED)
	@echo "Installing requirements.txt into $(VENV): under 1 GB, half a minute and the download"
	@$(INSTALL) -r requirements.txt
	@$(PIP) uninstall -qq --yes setuptools
	@rm -f $(UNFINISHED); touch $@

$(VENV)/.installed-%: requirements-%.txt $(VENV)/.installed-core
	@touch $(UNFINISHED)
	@echo "Installing requirements-$*.txt into $(VENV)"
	@$(INSTALL) -r requirements-$*.txt
	@rm -f $(UNFINISHED); touch $@
