# spacegrid: `make` alone explains the targets. Each target does the set-up it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
export VIRTUAL_ENV := $(CURDIR)/.venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1

RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

.PHONY: help setup build demo test test-rust test-python sim sim-mutants chaos failover wheel fmt lint types proto bench bench-peers ci clean

help: ## explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: build/setup.stamp ## environment, tools and the offline wheelhouse (once)
build/setup.stamp: pyproject.toml tools/constraints.txt
	@command -v cargo >/dev/null || { echo "Rust 1.88 or later is needed: cargo is not on the PATH" >&2; exit 1; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed" >&2; exit 1; }
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --constraint tools/constraints.txt $$($(PY) tools/requirements.py --all)
	mkdir -p build/wheelhouse
	$(PY) -m pip download --quiet --dest build/wheelhouse --constraint tools/constraints.txt $$($(PY) tools/requirements.py)
	touch $@

build: build/build.stamp ## compile the core and install the package into .venv
build/build.stamp: build/setup.stamp $(RUST)
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: build ## the main job on embedded defaults: a flash sale on three nodes, one of them killed
	.venv/bin/spacegrid demo

test: test-rust test-python ## everything: Rust tests, Python tests, the wheel in an empty environment

test-rust: ## the core's own tests
	cargo test --workspace --quiet --exclude spacegrid-py

test-python: build wheel build/protovenv/stamp build/etcd/stamp ## unit, property, cluster, sink, wheel tests
	$(PY) -m pytest $(PYTEST_ARGS)
	$(PY) -m pytest bench --quiet -o addopts=--strict-markers --benchmark-disable -k "not ratios"

sim: build ## simulate whole clusters, one seed is one run: SEEDS=n FIRST=s, or SEED=s alone
	PYTHONPATH=tests $(PY) -m simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200) \
		--first $(or $(FIRST),1)) --report build/reports/sim.json

sim-mutants: build build/planted/stamp ## plant bugs one by one and have the simulator find each: ONLY=a,b SEEDS=n
	PYTHONPATH=tests $(PY) -m simulation.mutants $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS)) \
		--extension build/planted/wheel/spacegrid/_core.abi3.so --report build/reports/sim-mutants.json
build/planted/stamp: build/setup.stamp $(RUST)
	rm -rf build/planted
	.venv/bin/maturin build --release --quiet --features planted --out build/planted
	$(PY) -m zipfile -e build/planted/*.whl build/planted/wheel
	touch $@

chaos: build ## break a real cluster under load and check every answer: CYCLES=n SEED=s NEMESIS=a,b COORDINATOR=etcd
	$(if $(filter etcd,$(COORDINATOR)),tools/etcd.sh)
	.venv/bin/spacegrid chaos --cycles $(or $(CYCLES),10) $(if $(SEED),--seed $(SEED)) \
		$(if $(NEMESIS),--nemesis $(NEMESIS)) $(if $(COORDINATOR),--coordinator $(COORDINATOR)) \
		--report build/reports/chaos.json

failover: build ## measure how long clients wait when nodes fail, leave or are busy: CYCLES=n ONLY=a,b LOAD=1GB COORDINATOR=etcd
	$(if $(filter etcd,$(COORDINATOR)),tools/etcd.sh)
	$(PY) -m spacegrid.testing.failover --cycles $(or $(CYCLES),10) $(if $(ONLY),--only $(ONLY)) \
		$(if $(LOAD),--load-bytes $(LOAD)) $(if $(COORDINATOR),--coordinator $(COORDINATOR)) \
		--report build/reports/failover.json

wheel: build/wheels/stamp ## the wheel, as users get it
build/wheels/stamp: build/build.stamp $(shell find python -name '*.py' -o -name '*.pyi')
	rm -rf build/wheels
	.venv/bin/maturin build --release --quiet --out build/wheels
	touch $@

build/etcd/stamp: tools/etcd.sh
	tools/etcd.sh
	touch $@

build/protovenv/stamp: tools/proto-constraints.txt tools/proto.sh
	tools/proto.sh --check
	touch $@

fmt: setup ## format Rust and Python
	cargo fmt --all
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix-only --quiet .

lint: build ## formats, clippy, ruff, the import contract, merges left half done
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	! git grep -nE '^(<{7}|>{7}) '

types: build ## mypy strict, and the stub against the binary
	.venv/bin/mypy
	$(PY) -m mypy.stubtest spacegrid._core --mypy-config-file pyproject.toml \
		--allowlist tools/stubtest.allow

proto: setup ## regenerate the stubs from proto/
	tools/proto.sh

bench: build ## pytest-benchmark suites
	mkdir -p build/reports
	$(PY) -m pytest bench --benchmark-only --benchmark-json build/reports/pytest-benchmark.json $(PYTEST_ARGS)
	$(PY) bench/summarise.py build/reports/pytest-benchmark.json build/reports/bench.json

bench-peers: build ## side by side with Redis, uhashring and dict, in one run
	tools/redis.sh
	$(PY) -m bench.peers --report build/reports/bench-peers.json $(BENCH_ARGS)

ci: lint types test ## exactly what CI runs
	tools/proto.sh --check

clean: ## remove what was built
	rm -rf build target dist .venv
