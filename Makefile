# Everything a developer runs. `make` alone lists it.

PYTHON ?= python3
VENV ?= .venv
SAMPLE ?= sklearn_wine

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.PHONY: help run sample test check lint format lock e2e faults long soak bench scale clean

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TYPED := stream_scorer http_facade samples tests benchmarks

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: sample $(VENV)/.samples ## Score over HTTP on an embedded broker; SAMPLE=keras_mnist and =sklearn_wine/onnx too
	@exec $(BIN)/stream-scorer dev --conf samples/$(SAMPLE)/conf.yaml

sample:
	@test -f samples/$(SAMPLE)/conf.yaml || { echo "no sample '$(SAMPLE)'; there are:" \
	  "$(patsubst samples/%/conf.yaml,%,$(wildcard samples/*/conf.yaml samples/*/*/conf.yaml))" >&2; exit 2; }

# Side by side, all but the tests that kill and pause what runs: those want the machine alone.
test: lint ## Format, lint, types and all tests, on a real Kafka where one can be had
	$(BIN)/pytest -n 2 --dist loadfile -m "not (chaos or e2e or long)"
	$(BIN)/pytest -m "chaos and not long"
	@echo "not run here: tests/e2e (make e2e, needs Docker), the long forms (make long)"

check: lint ## The fast part of test: format, lint, types and unit tests
	$(BIN)/pytest -n 2 tests/unit

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(TYPED)

format: $(VENV)/.dev ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

e2e: $(VENV)/.dev ## Docker: compose, its profiles, build-image; a quarter of an hour
	$(BIN)/pytest -m e2e tests/e2e

faults: $(VENV)/.dev ## Kill and pause workers and brokers, some minutes, and check the checker
	$(BIN)/pytest -m "chaos and not long" tests/faults

long: $(VENV)/.dev ## Kill and restart the facade by the hundred, and mix up its replies: four minutes
	$(BIN)/pytest -m long tests

soak: $(VENV)/.dev ## Kill workers and the broker for half an hour, and write docs/soak.md
	$(BIN)/python -m tests.faults.soak docs/soak.md

bench: $(VENV)/.dev ## Measure beside a bare loop and other projects, an hour or so; see benchmarks/
	$(BIN)/python -m benchmarks

scale: $(VENV)/.dev ## Measure more workers and partitions, 25 minutes, and fill in docs/scale.md
	$(BIN)/python -m benchmarks.scale run
	$(BIN)/python -m benchmarks.scale render

# The oldest Python decides, since newer ones take what it takes. Both builds of TensorFlow are
# asked for, so that the pins serve the platforms that take the other one.
lock: $(BIN)/python ## Pin the newest versions that fit together, in constraints.txt
	@$(BIN)/python -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "lock with Python 3.11: make lock VENV=/tmp/lock PYTHON=python3.11")'
	@{ echo "# What is installed: made by \`make lock\`, from pyproject.toml."; \
	  $(PIP) install --quiet --dry-run --ignore-installed --report - -e '.[dev]' tensorflow \
	  | $(BIN)/python -c "import json, sys; print(*sorted((f'{each[\"metadata\"][\"name\"]}=={each[\"metadata\"][\"version\"]}' for each in json.load(sys.stdin)['install'] if not each['is_direct']), key=str.lower), sep='\n')"; \
	} >constraints.new
	@mv constraints.new constraints.txt

clean: ## Remove the virtual environment, caches and builds
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; stream-scorer needs Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "stream-scorer needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.samples: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); the first time this takes some minutes"
	$(PIP) install --quiet -c constraints.txt -e '.[samples]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); the first time this takes some minutes"
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.samples
