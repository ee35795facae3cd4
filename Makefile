# `make` lists the targets. Everything happens in .venv and .bundles of this folder.
PYTHON ?= python3
VENV ?= .venv
BUNDLE ?= .bundles/compact
BIN := $(VENV)/bin
# Its dependencies, heavy and pinned, do not fit beside ours.
CHECKOV := .venv-checkov
CHECKOV_VERSION := 3.3.30
# Likewise. It brings the runtime interface emulator too.
SAM := .venv-sam
SAM_VERSION := 1.170.0
# Likewise, and for a Python of its own: it takes none older than 3.12.
LOCALSTACK := .venv-localstack
LOCALSTACK_VERSION := 4.14.0
AWS_ENDPOINT_URL ?= http://127.0.0.1:4566
# What the function is built for: the processor, and the Python of a zip.
ARCHITECTURE ?= x86_64
ZIP_PYTHON ?= 3.13
EVENT ?= events/one-ticket.json
# What is deployed, as Docker here knows it.
IMAGE ?= ticket-lambda:latest
# The official builds of ONNX Runtime report to their maker; enrichment/session.py stops that in the function itself.
export ORT_DISABLE_TELEMETRY := 1
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXPORT := $(wildcard enrichment/export/*.*) enrichment/taxonomy.toml enrichment/cues.py enrichment/encoder.py enrichment/text.py

.PHONY: help demo test zip test-zip test-sam sam-invoke image deploy destroy cost image-standin test-lambda bench-lambda test-e2e test-localstack deploy-localstack test-cpus test-faults soak check scan bench bench-full bundle bundle-path format lint types template clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/' | expand -t 22

demo: $(BUNDLE)/bundle.json  ## Send 60 tickets through the whole system on this machine
	@$(BIN)/python -m handler.local.demo --bundle $(BUNDLE)

bundle: $(BUNDLE)/bundle.json  ## Build the compact model bundle

bundle-path: $(BUNDLE)/bundle.json  ## Print the folder of the bundle, building it when it is not there
	@echo $(abspath $(BUNDLE))

test: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Run every test
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

test-faults: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Break everything around 20,000 messages, and account for each
	$(BIN)/python -m pytest -s --show-capture=no tests/faults

soak: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Send 5,000 tickets through a real worker; its memory and files stay flat
	@$(BIN)/python -m tests.bench.soak --bundle $(BUNDLE)

image-standin: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Build the function's image without Flox, same contract (needs Docker)
	@$(BIN)/python -m deploy.standin.build --bundle $(BUNDLE)

test-lambda: image-standin $(SAM)/.$(SAM_VERSION)  ## The image as Lambda runs it: read-only, no user, its memory, RIE
	$(BIN)/python -m pytest tests/runtime

test-e2e: image-standin $(SAM)/.$(SAM_VERSION)  ## The deployed system on an AWS of our own: real template, mapping, role, image
	$(BIN)/python -m pytest tests/endtoend

test-localstack: $(VENV)/bin/python  ## The same on LocalStack, where there is a Python 3.12 or 3.13
	@if python=$${LOCALSTACK_PYTHON:-$$($(BIN)/python tests/endtoend/interpreter.py)}; then \
	    $(MAKE) --no-print-directory image-standin $(SAM)/.$(SAM_VERSION) && \
	    $(MAKE) --no-print-directory $(LOCALSTACK)/.$(LOCALSTACK_VERSION) LOCALSTACK_PYTHON="$$python" && \
	    $(BIN)/python -m pytest tests/endtoend --cloud localstack; \
	fi

deploy-localstack: $(SAM)/.$(SAM_VERSION)  ## Deploy to the LocalStack at AWS_ENDPOINT_URL
	@$(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/_localstack/health", timeout=9)' \
	    $(AWS_ENDPOINT_URL) 2>/dev/null || { echo "error: no LocalStack answers at $(AWS_ENDPOINT_URL);" \
	    "start one, or name it: make deploy-localstack AWS_ENDPOINT_URL=http://..." >&2; exit 1; }
	@AWS_ENDPOINT_URL=$(AWS_ENDPOINT_URL) AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_SESSION_TOKEN= \
	    $(SAM)/bin/sam deploy --config-env localstack

cost: $(VENV)/.demo $(BUNDLE)/bundle.json  ## Measure a ticket and price a million: COST="--memory 1024 --price NAME=USD"
	@PYTHONPATH=. $(BIN)/python deploy/cost.py --bundle $(BUNDLE) $(COST)

zip: $(VENV)/.demo $(BUNDLE)/bundle.json  ## Build the function as a zip, and dist/template-zip.yaml that deploys it
	@$(BIN)/python -m deploy.lambda.function_zip --python $(ZIP_PYTHON) --architecture $(ARCHITECTURE) --bundle $(BUNDLE)

image:  ## Build the function's image by Flox, as ticket-lambda:latest
	@deploy/lambda/image.sh

deploy: $(VENV)/.demo $(SAM)/.$(SAM_VERSION)  ## Push the image to ECR and deploy to AWS: PARAMETERS="NAME=VALUE ..."
	@$(BIN)/python deploy/lambda/release.py deploy --sam $(SAM)/bin/sam --image $(IMAGE) $(PARAMETERS)

destroy: $(VENV)/.demo $(SAM)/.$(SAM_VERSION)  ## Delete what was deployed to AWS, but for the tickets
	@$(BIN)/python deploy/lambda/release.py destroy --sam $(SAM)/bin/sam

test-zip: $(VENV)/.dev $(BUNDLE)/bundle.json $(SAM)/.$(SAM_VERSION)  ## The function out of its zip, under RIE
	$(BIN)/python -m pytest tests/zip

sam-invoke: image-standin $(SAM)/.$(SAM_VERSION)  ## Give one sample event to the image: EVENT=events/one-ticket.json
	@$(BIN)/python -m tests.sam.local $(EVENT)

test-sam: image-standin $(SAM)/.$(SAM_VERSION)  ## The image by `sam local invoke`, with the sample events
	$(BIN)/python -m pytest tests/sam

bench-lambda: image-standin $(SAM)/.$(SAM_VERSION)  ## Figures of the image: init against torch, a ticket's cost
	@$(BIN)/python -m tests.bench.container

test-cpus: $(VENV)/.dev $(BUNDLE)/bundle.json  ## The same bundle under emulated CPUs: AVX2 only, SSE4.2, Arm's NEON
	$(BIN)/python -m pytest tests/cpus

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
	rm -rf $(VENV) $(CHECKOV) $(SAM) $(LOCALSTACK) .bundles .cpus build

# The default bundle; another one is given by BUNDLE=... and is never built here.
.bundles/compact/bundle.json: $(EXPORT) | $(VENV)/.demo
	@$(BIN)/python -m enrichment.export compact --out .bundles/compact >/dev/null
	@touch $@

$(VENV)/.demo: pyproject.toml deploy/constraints.txt | $(VENV)/bin/python
	@$(BIN)/python .ci/torch_build.py
	@echo "Installing into $(VENV) ..." >&2
	@$(PIP) install -qq --no-compile -c deploy/constraints.txt -e '.[export,cli,local]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) install -qq --no-compile -c deploy/constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@$(PIP) install -q --no-compile -c deploy/constraints.txt -e '.[bench]'
	@touch $@

$(CHECKOV)/.$(CHECKOV_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(CHECKOV) ..." >&2
	@$(BIN)/python -m venv --clear $(CHECKOV)
	@$(CHECKOV)/bin/python -m pip --disable-pip-version-check install -qq --no-compile checkov==$(CHECKOV_VERSION)
	@touch $@

$(SAM)/.$(SAM_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(SAM) ..." >&2
	@$(BIN)/python -m venv --clear $(SAM)
	@$(SAM)/bin/python -m pip --disable-pip-version-check install -qq --no-compile aws-sam-cli==$(SAM_VERSION)
	@touch $@

$(LOCALSTACK)/.$(LOCALSTACK_VERSION): tests/endtoend/localstack-constraints.txt tests/endtoend/plugin/pyproject.toml
	@echo "Installing into $(LOCALSTACK) ..." >&2
	@$(LOCALSTACK_PYTHON) -m venv --clear $(LOCALSTACK)
	@$(LOCALSTACK)/bin/python -m pip --disable-pip-version-check install -qq --no-compile \
	    -c tests/endtoend/localstack-constraints.txt localstack-core[runtime] -e tests/endtoend/plugin
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.version_info >= (3, 14))' || \
		{ echo "error: $(PYTHON) is no Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
