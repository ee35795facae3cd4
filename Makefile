# `make` lists the targets. Everything happens in .venv and .bundles of this folder.
PYTHON ?= python3
VENV ?= .venv
BUNDLE ?= .bundles/compact
BIN := $(VENV)/bin
# Its dependencies, heavy and pinned, do not fit beside ours.
CHECKOV := .venv-checkov
CHECKOV_VERSION := 3.3.30
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXPORT := $(wildcard enrichment/export/*.*) enrichment/taxonomy.toml enrichment/cues.py enrichment/encoder.py enrichment/text.py

.PHONY: help demo test test-faults check scan bench bench-full bundle bundle-path format lint types template clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

demo: $(BUNDLE)/bundle.json  ## Send 60 tickets through the whole system on this machine
	@$(BIN)/python -m handler.demo --bundle $(BUNDLE)

bundle: $(BUNDLE)/bundle.json  ## Build the compact model bundle

bundle-path: $(BUNDLE)/bundle.json  ## Print the folder of the bundle, building it when it is not there
	@echo $(abspath $(BUNDLE))

test: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Run every test
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

test-faults: $(VENV)/.dev  ## Only the tests that kill and break things
	$(BIN)/python -m pytest -s tests/faults

check: format lint types template test  ## Format, lint, types, template and tests

format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

template: $(VENV)/.dev
	$(BIN)/cfn-lint template.yaml

scan: $(CHECKOV)/.$(CHECKOV_VERSION)  ## Scan template.yaml, and what is deployed for secrets, with checkov
	@$(CHECKOV)/bin/python .ci/scan.py

bench: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Print the figures of the README, as ratios within one run
	@$(BIN)/python -m tests.bench --bundle $(BUNDLE)

bench-full: $(VENV)/.bench  ## The same of the full profile, on random models of the true size: half an hour
	@$(BIN)/python -m tests.bench.full

clean:  ## Remove the virtual environment and the bundles
	rm -rf $(VENV) $(CHECKOV) .bundles

# The default bundle; another one is given by BUNDLE=... and is never built here.
.bundles/compact/bundle.json: $(EXPORT) | $(VENV)/.demo
	@$(BIN)/python -m enrichment.export compact --out .bundles/compact >/dev/null
	@touch $@

$(VENV)/.demo: pyproject.toml deploy/constraints.txt | $(VENV)/bin/python
	@$(BIN)/python .ci/torch_build.py
	@echo "Installing into $(VENV) ..." >&2
	@$(PIP) install -q --no-compile -c deploy/constraints.txt -e '.[export,cli,local]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) install -q --no-compile -c deploy/constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@$(PIP) install -q --no-compile -c deploy/constraints.txt -e '.[bench]'
	@touch $@

$(CHECKOV)/.$(CHECKOV_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(CHECKOV) ..." >&2
	@$(BIN)/python -m venv --clear $(CHECKOV)
	@$(CHECKOV)/bin/python -m pip --disable-pip-version-check install -q --no-compile checkov==$(CHECKOV_VERSION)
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.version_info >= (3, 14))' || \
		{ echo "error: $(PYTHON) is no Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
