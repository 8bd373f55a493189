# Targets for all work with a clone. Each target does its own setup (.ci/setup); builds and installations stay
# outside the clone.
#
# The whole workspace is built at once, with its tests, so that run, test and CI share every compiled
# dependency.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export CARGO_TARGET_DIR ?= $(HOME)/.cache/kalamdb-target
export KALAMDB_BIN := $(CARGO_TARGET_DIR)/debug/kalamdb
export PYTHONDONTWRITEBYTECODE := 1

clients := flight-server/tests/clients
requirements := $(clients)/python/requirements.txt
venv := $(HOME)/.cache/kalamdb-venv-$(shell sha256sum $(requirements) | cut -c1-12)
python := $(venv)/bin/python
maven := mvn -B -ntp
guards := GUARDS_MUST_RUN=1 cargo test --workspace --test answers
guards_long := GUARDS_MUST_RUN=1 cargo test --release --workspace --test answers
with_server := $(python) $(clients)/python/server.py --

.PHONY: help run test bench bench-quick fmt lint build test-rust test-examples test-python test-java guards guards-long guards-faults \
        setup-build setup-postgres setup-python setup-corpora

help: ## Lists the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18

run: build ## Builds, starts a server with a demo and prints how to connect to it.
	@flight-server/demo.sh

test: test-rust test-examples test-python test-java ## Runs all tests: Rust, the client examples, real clients.

bench: setup-build ## Runs the benchmarks, release build, and prints a table.
	cargo build --release --workspace --bins
	$(CARGO_TARGET_DIR)/release/kalamdb-benches --plot docs/write-latency.svg

bench-quick: build ## Runs every benchmark briefly, to see that it works; the figures mean nothing.
	$(CARGO_TARGET_DIR)/debug/kalamdb-benches --quick

fmt: setup-build ## Formats the Rust code.
	cargo fmt --all

lint: setup-build ## Checks formatting and lints; warnings are errors.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

build: setup-build ## Builds everything with the dev profile.
	cargo build --workspace --all-targets

test-rust: build setup-postgres setup-corpora ## Runs the Rust tests of all crates, with the correctness guards.
	cargo test --workspace

guards: build setup-postgres setup-corpora ## Runs only the correctness guards, as long as in CI; KALAMDB_SEED sets the seed.
	$(guards)

guards-long: setup-build setup-postgres setup-corpora ## Runs the guards at length: 200,000 random queries and 20 % of SQLite's corpus; release build.
	$(guards_long) -- --long

guards-faults: build setup-postgres setup-corpora ## Checks that the guards find every fault that can be planted in the planner.
	$(guards) -- --faults

test-examples: build setup-python ## Runs every program under client-examples/, each against its own server.
	$(CARGO_TARGET_DIR)/debug/example-embedded
	$(with_server) $(CARGO_TARGET_DIR)/debug/example-flight-sql
	$(with_server) $(CARGO_TARGET_DIR)/debug/example-live-query
	for example in client-examples/python/*.py; do $(with_server) $(python) $$example; done
	cd client-examples/java && $(abspath $(python)) ../../$(clients)/python/server.py -- $(maven) -q compile exec:java

test-python: build setup-python ## Tests ADBC, pyarrow, grpcio, pandas, polars and TPC-H against the built server.
	$(python) -m pytest $(clients)/python
	$(python) -m pytest $(clients)/python --flushed

test-java: build setup-python ## Tests the JDBC driver against the built server.
	$(with_server) $(maven) -f $(clients)/java/pom.xml test
	$(python) $(clients)/python/server.py --flushed -- $(maven) -f $(clients)/java/pom.xml test

setup-build:
	@.ci/setup build

setup-postgres:
	@.ci/setup postgres

setup-python:
	@.ci/setup python $(venv)

setup-corpora:
	@.ci/setup corpora
