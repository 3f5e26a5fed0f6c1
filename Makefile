# `make up` and `make test` need Python 3.11 or later, make, and a package registry; nothing else.
# PYTHON chooses the interpreter, ARGS passes flags on: make up ARGS="--no-demo --data DIR", make test ARGS="-k cover".

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
PYTEST := $(BIN)/python -m pytest
ARGS ?=
JOBS ?= 3

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.14 python,\
	$(shell command -v $(name) >/dev/null 2>&1 && $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))

.DEFAULT_GOAL := help
.PHONY: help up setup setup-dev test test-slow test-containers test-matrix test-pairs test-kubernetes test-browser check lint format bench bench-capture bench-relay bench-latency bench-fanout bench-connections bench-drift bench-growth soak docs lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: setup  ## start everything on this machine; Ctrl-C stops it
	@exec $(BIN)/tocsin up $(ARGS)

setup: $(VENV)/runtime.stamp  ## make .venv with what runs

setup-dev: $(VENV)/dev.stamp  ## make .venv with what tests and lints too

$(VENV)/pyvenv.cfg:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "error: Tocsin needs Python 3.11 or later; found: $$($(if $(PYTHON),$(PYTHON),python3) --version 2>&1)" >&2; \
		echo "fix: install one, and say where it is: make up PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "fix: install Python's venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }

# The second install puts the project itself in, editable; its dependencies are all in the lock.
$(VENV)/runtime.stamp: $(VENV)/pyvenv.cfg requirements/runtime.lock pyproject.toml
	@echo "installing what runs, from requirements/runtime.lock"
	@$(PIP) install --require-hashes --requirement requirements/runtime.lock
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp requirements/dev.lock
	@echo "installing what tests and lints, from requirements/dev.lock"
	@$(PIP) install --require-hashes --requirement requirements/dev.lock
	@touch $@

test: setup-dev  ## every test that needs no Docker and no browser; JOBS=0 runs them one after another
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not browser and not containers and not slow" $(ARGS)

test-slow: setup-dev  ## soaks and matrices, minutes long
	$(PYTEST) -m slow --timeout 1800 $(ARGS)

# Left out: what PostgreSQL 18 alone counts (conflicts), and a source on this machine's loopback, which a container's replica can't reach.
FINDINGS := tests/integration/tocsin_check/test_findings.py
test-containers: setup-dev  ## the integration tests against the public images, and the compose file (needs Docker)
	TOCSIN_TEST_BACKEND=containers $(PYTEST) -m "not browser and not slow" tests/integration $(ARGS) \
		--deselect $(FINDINGS)::test_each_fault_of_the_subscription --deselect $(FINDINGS)::test_a_lost_slot_is_told_and_its_fix_mends_it
	$(PYTEST) -m containers tests/acceptance $(ARGS)

test-matrix: setup-dev  ## the core tests on other versions of PostgreSQL, NATS and Python (ARGS: which)
	$(BIN)/python -m tests.support.matrix $(ARGS)

test-pairs: setup-dev  ## the checker between PostgreSQL 14 to 18, each as source and as replica (ARGS: which)
	$(BIN)/python -m tests.support.pairs $(ARGS)

test-kubernetes: setup-dev  ## deploy/kubernetes before a real API server (needs Go and kubectl; ten minutes the first time)
	$(BIN)/python -m tests.support.control_plane $(ARGS)

test-browser: setup-dev  ## the tests that drive a real Chromium
	$(PYTEST) -m browser $(ARGS)

check: lint test  ## format, lint, types, architecture, then the tests

lint: setup-dev  ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev  ## put the code into the house's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup-dev  ## every benchmark against its rivals; results in benchmarks/results
	@for file in $$(grep -l '__main__' benchmarks/*.py | grep -v -e sink -e table -e soak -e arrivals -e writer) benchmarks/table.py; do \
		name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

bench-capture: setup-dev  ## commits a second with capture and with the whole pipeline (any other: make bench-NAME; ARGS: its flags)
	$(BIN)/python -m benchmarks.capture $(ARGS)

bench-relay: setup-dev  ## events a second from the journal to acknowledged
	$(BIN)/python -m benchmarks.relay $(ARGS)

bench-latency: setup-dev  ## from the commit to the client
	$(BIN)/python -m benchmarks.latency $(ARGS)

bench-fanout: setup-dev  ## messages a second to many clients
	$(BIN)/python -m benchmarks.fanout $(ARGS)

bench-connections: setup-dev  ## memory of an idle client
	$(BIN)/python -m benchmarks.connections $(ARGS)

bench-drift: setup-dev  ## a full audit
	$(BIN)/python -m benchmarks.drift $(ARGS)

bench-growth: setup-dev  ## how the cost of capture grows, five minutes: tables, writers, sizes, a kept journal
	$(BIN)/python -m benchmarks.growth_capture $(ARGS)

bench-%: setup-dev
	$(BIN)/python -m benchmarks.$* $(ARGS)

soak: setup-dev  ## twenty minutes of random writers and random kill -9 of every part (ARGS="--minutes 5")
	$(BIN)/python -m benchmarks.soak $(ARGS)

docs: setup-dev  ## write docs/settings.md anew
	$(BIN)/python -m tests.support.settings_page

LOCK := $(BIN)/uv pip compile --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header --no-annotate
lock: $(VENV)/pyvenv.cfg  ## resolve the dependencies anew (UPGRADE=1 takes newer versions)
	@$(PIP) install uv
	$(LOCK) $(if $(UPGRADE),--upgrade) --extra embedded --extra build -o requirements/runtime.lock pyproject.toml
	$(LOCK) $(if $(UPGRADE),--upgrade) --extra build -c requirements/runtime.lock -o requirements/service.lock pyproject.toml
	$(LOCK) $(if $(UPGRADE),--upgrade) --all-extras -c requirements/runtime.lock -o requirements/dev.lock pyproject.toml
	$(LOCK) $(if $(UPGRADE),--upgrade) -o requirements/release.lock --group pyproject.toml:release

.release/stamp: requirements/release.lock
	@rm -rf .release && $(PYTHON) -m venv .release
	@.release/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes --requirement requirements/release.lock
	@touch $@

dist: .release/stamp  ## the wheel and the source distribution
	.release/bin/python -m build --no-isolation --outdir dist .

sbom: .release/stamp  ## what is in it, as CycloneDX, from the lock
	@mkdir -p dist
	.release/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible \
		--output-file dist/tocsin.cdx.json requirements/runtime.lock

audit: .release/stamp  ## known vulnerabilities of what runs (asks a public database; ARGS="-s osv --osv-url URL": your own)
	.release/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements/runtime.lock $(ARGS)

release:  ## check, build and tag the version of pyproject.toml
	@PYTHON=$(PYTHON) .ci/release

clean:  ## remove .venv and caches; the data in .tocsin stay
	rm -rf $(VENV) .release .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
