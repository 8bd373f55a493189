# Targets for all work with a clone. Each target does its own setup (.ci/setup); builds and installations stay
# outside the clone.
#
# Run, test and CI share every compiled dependency, because each build has the features of the whole workspace
# with its tests: `--workspace` selects the packages, and `--examples`, of which there are none, the features of
# tests without building a test.

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
tools := $(HOME)/.cache/kalamdb-tools-$(shell sha256sum .ci/requirements.txt | cut -c1-12)
maven := mvn -B -ntp
guards := GUARDS_MUST_RUN=1 cargo test --workspace --test answers
guards_long := GUARDS_MUST_RUN=1 cargo test --release --workspace --test answers
with_server := $(python) $(clients)/python/server.py --
# Every test binary, client suite and example must end within this time, so that nothing hangs.
limit_s ?= 1800
limit := timeout --foreground --kill-after=30 $(limit_s)
limited := --config 'target."cfg(all())".runner = "$(limit)"'

prefix ?= /usr/local
package := $(CARGO_TARGET_DIR)/package
version = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
deb = $(package)/kalamdb_$(version)_$(shell dpkg --print-architecture).deb

# Says how long a build takes that compiles all dependencies.
first_build = @[ -e $(CARGO_TARGET_DIR)/$(1)/kalamdb ] || echo "The first build compiles 400 crates and RocksDB: $(2). Later builds compile what has changed."

.PHONY: help run test bench bench-quick fmt check lint doc deny build program release install deb test-rust test-examples test-python \
        test-java test-deb guards guards-long guards-faults guests setup-build setup-postgres setup-python setup-tools setup-deny setup-corpora

help: ## Lists the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18

run: program ## Builds the program, starts a server with a demo and prints how to connect to it.
	@flight-server/demo.sh

test: test-rust test-examples test-python test-java ## Runs all tests: Rust, the client examples, real clients.

bench: setup-build ## Runs the benchmarks, release build, and prints a table.
	cargo build --release --workspace --bins
	$(CARGO_TARGET_DIR)/release/kalamdb-benches --plot docs/write-latency.svg

bench-quick: build ## Runs every benchmark briefly, to see that it works; the figures mean nothing.
	$(CARGO_TARGET_DIR)/debug/kalamdb-benches --quick

fmt: setup-build ## Formats the Rust code.
	cargo fmt --all

check: setup-build ## Checks a change in a minute: formatting, and lints of libraries and programs, not of tests.
	cargo fmt --all --check
	cargo clippy --workspace --lib --bins --examples -- -D warnings

lint: setup-build setup-tools ## Checks formatting, spelling and lints; warnings are errors.
	cargo fmt --all --check
	$(tools)/bin/typos
	cargo clippy --workspace --all-targets -- -D warnings

doc: setup-build ## Builds the documentation of the crates; warnings are errors.
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --lib --examples

deny: setup-deny ## Checks licences, sources, versions and known vulnerabilities of all dependencies.
	cargo deny check

program: setup-build ## Builds the program with the dev profile.
	$(call first_build,debug,about 15 minutes on two processors)
	cargo build --workspace --bin kalamdb --examples

build: setup-build ## Builds everything with the dev profile.
	$(call first_build,debug,about 20 minutes on two processors)
	cargo build --workspace --all-targets

release: setup-build ## Builds the program for use: optimised, its symbols in a file beside it.
	$(call first_build,release,about 30 minutes on two processors)
	cargo build --release --workspace --bin kalamdb
	packaging/strip $(CARGO_TARGET_DIR)/release/kalamdb $(package)

install: release ## Installs the optimised program below prefix, which is /usr/local.
	install -D -m 755 $(package)/kalamdb $(DESTDIR)$(prefix)/bin/kalamdb
	install -D -m 644 $(package)/kalamdb.debug $(DESTDIR)$(prefix)/bin/kalamdb.debug

deb: release ## Builds a Debian package with a systemd unit.
	packaging/deb $(package)/kalamdb $(version) $(package)

test-rust: build setup-postgres setup-corpora ## Runs the Rust tests of all crates, with the correctness guards.
	cargo test --workspace $(limited)

guards: build setup-postgres setup-corpora ## Runs only the correctness guards, as long as in CI; KALAMDB_SEED sets the seed.
	$(guards) $(limited)

guards-long: setup-build setup-postgres setup-corpora ## Runs the guards at length: 200,000 random queries and 20 % of SQLite's corpus; release build.
	$(guards_long) -- --long

guards-faults: build setup-postgres setup-corpora ## Checks that the guards find every fault that can be planted in the planner.
	$(guards) -- --faults

guests: setup-build ## Measures what the worst statements and connections of a user do to others; release build.
	GUESTS_WHOLE=1 cargo test --release --workspace --test guests -- --nocapture

test-examples: build setup-python ## Runs every program under client-examples/, each against its own server.
	$(limit) $(CARGO_TARGET_DIR)/debug/example-embedded
	$(limit) $(with_server) $(CARGO_TARGET_DIR)/debug/example-flight-sql
	$(limit) $(with_server) $(CARGO_TARGET_DIR)/debug/example-live-query
	for example in client-examples/python/*.py; do $(limit) $(with_server) $(python) $$example; done
	cd client-examples/java && $(limit) $(abspath $(python)) ../../$(clients)/python/server.py -- $(maven) -q compile exec:java

test-python: build setup-python ## Tests ADBC, pyarrow, grpcio, pandas, polars and TPC-H against the built server.
	$(limit) $(python) -m pytest $(clients)/python
	$(limit) $(python) -m pytest $(clients)/python --flushed

test-java: build setup-python ## Tests the JDBC driver against the built server.
	$(limit) $(with_server) $(maven) -f $(clients)/java/pom.xml test
	$(limit) $(python) $(clients)/python/server.py --flushed -- $(maven) -f $(clients)/java/pom.xml test

test-deb: deb ## Installs the Debian package, runs a query and purges it; needs root, and no KalamDB on the machine.
	$(if $(filter 0,$(shell id -u)),,sudo) .ci/deb-test $(deb)

setup-build:
	@.ci/setup build

setup-postgres:
	@.ci/setup postgres

setup-python:
	@.ci/setup python $(venv) $(requirements)

setup-tools:
	@.ci/setup python $(tools) .ci/requirements.txt

setup-deny:
	@.ci/setup deny

setup-corpora:
	@.ci/setup corpora
