# The commands of the house. A fresh machine needs Python 3.11 or newer, pip and make; everything else goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# 3.11 first: the lock was made with it. An interpreter counts when it runs, is new enough and can make an environment.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
BIN := .venv/bin
STAMP := .venv/.stamp
# Two workers fill two cores; each of them keeps torch to one thread (tests/conftest.py).
WORKERS ?= 2
ARGS ?=

.PHONY: help venv demo test test-slow test-ray browser test-browser lint bench bench-embedded clients docs docs-tables lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

venv: $(STAMP) ## make .venv and install exactly what requirements/lock.txt says

$(STAMP): requirements/lock.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Safelight needs Python 3.11 or newer with venv and pip; none was found. Try: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements/lock.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP) ## from examples/pixel-people to a LoRA, a sheet and a report in out/demo
	$(BIN)/safelight develop examples/pixel-people --trigger 'in pixel style' --prompts examples/pixel-prompts.txt --out out/demo $(ARGS)

test: $(STAMP) ## the tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(STAMP) ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -q -m slow $(ARGS)

test-ray: $(STAMP) ## the tests on Ray, which this installs
	$(BIN)/python -m pip install --disable-pip-version-check -q -c requirements/lock.txt 'ray[data,train]>=2.60'
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/flow/test_juicer_ray.py tests/flow/test_train_ray.py tests/server/test_serving_ray.py $(ARGS)

browser: $(STAMP) ## install what the tests in a browser need: ComfyUI's frontend into .venv and, as root on Debian, Chromium
	$(BIN)/python -m pip install --disable-pip-version-check -q "$$(sed -nE 's/^comfy = \["([^"]+)"\].*/\1/p' pyproject.toml)"
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name && exit; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "make browser: no Chromium was found; install it (on Debian: sudo apt-get install chromium), then call make browser again" >&2; exit 1; \
	fi; \
	get="env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120"; \
	echo "make browser: installs Debian's chromium"; \
	$$get update && $$get install -y --no-install-recommends chromium >/dev/null && command -v chromium || { \
	  echo "make browser: apt-get could not install chromium; what it said stands above" >&2; exit 1; \
	}

test-browser: browser ## the tests in Chromium alone; what they need is installed, and none is skipped
	SAFELIGHT_BROWSER=required $(BIN)/python -m pytest -q tests/browser tests/server/test_editor.py $(ARGS)

lint: $(STAMP) ## style, types, layers, sizes, generated docs
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python tools/check_sizes.py
	$(BIN)/python tools/check_recipes.py
	$(BIN)/python tools/check_words.py
	$(BIN)/python tools/op_versions.py
	$(BIN)/python tools/gen_docs.py --check
	$(BIN)/python tools/lock.py --check

bench: $(STAMP) ## speed against the floor and against peers, as ratios
	for script in bench/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

bench-embedded: $(STAMP) ## quality of the embedded model on held-out prompts
	$(BIN)/python bench/embedded.py $(ARGS)

clients: $(STAMP) ## clients that others wrote, from PyPI and npm, against our server, each drawing a picture
	$(BIN)/python bench/clients/run.py $(ARGS)

docs: $(STAMP) docs-tables ## the site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-tables: $(STAMP) ## rewrite the generated tables of README.md and docs/
	$(BIN)/python tools/gen_docs.py

lock: ## resolve pyproject.toml anew in a fresh environment and write requirements/lock.txt
	rm -rf build/lock
	"$(PYTHON)" -m venv build/lock
	build/lock/bin/python -m pip install --disable-pip-version-check 'torch==2.13.0' hatchling editables '.[dev,docs,onnx,parquet,render,serve]'
	build/lock/bin/python tools/lock.py
	rm -rf build/lock

clean: ## remove what these commands made, .venv included
	rm -rf .venv build dist site out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests tools bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
