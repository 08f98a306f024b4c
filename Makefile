# Everything a newcomer runs. `make` alone lists it. Targets are words, never paths, because make
# cannot handle a path with spaces and this checkout may lie under one.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-long lint format images base-image bench docs pictures lock clean

PY := .venv/bin/python
ENGINE ?= local
STATE ?= .run
UP_ARGS ?=
PYTEST_ARGS ?=
# One waits for engines, hubs and browsers, the other computes; more need more memory and ports.
WORKERS ?= 2
BENCH ?= spawn
BENCH_ARGS ?=
IMAGES ?= hub node postgres notebook
VARIANT ?= cpu
TAG ?= latest
BASE ?= debian:bookworm-slim
SETUP := sh tools/setup.sh

help: ## list these targets
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r t d; do printf '%-13s %s\n' "$$t" "$$d"; done

setup: ## set up what `make run` needs, without starting anything
	@$(SETUP) run

run: ## start proxy, hub, service and node on this machine (UP_ARGS='--port 8100')
	@$(SETUP) run
	@exec $(PY) -m gpuslice up --engine "$(ENGINE)" --state "$(STATE)" $(UP_ARGS)

test: ## set up and run every test that takes seconds (PYTEST_ARGS='-k ledger -x', WORKERS=0)
	@$(SETUP) test
	@$(PY) -m pytest -m "not long" -n $(WORKERS) $(PYTEST_ARGS)

test-long: ## run the tests that take minutes
	@$(SETUP) test
	@$(PY) -m pytest -m long $(PYTEST_ARGS)

lint: ## check format, style, types and which module imports which
	@$(SETUP) test
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-logo
	@$(PY) extensions/hatch_build.py lint

format: ## write the format that `make lint` checks
	@$(SETUP) test
	@$(PY) -m ruff format
	@$(PY) -m ruff check --fix --select I
	@$(PY) extensions/hatch_build.py format

images: ## build the container images (IMAGES='hub node', VARIANT=cuda, TAG, CA, WHEELS, BASE)
	@$(SETUP) run
	@$(PY) tools/images.py $(IMAGES) --variant "$(VARIANT)" --tag "$(TAG)" --base "$(BASE)" \
		$(if $(CA),--ca "$(CA)") $(if $(WHEELS),--wheels "$(WHEELS)") \
		$(if $(BUILD_FLAGS),--flags $(BUILD_FLAGS))

base-image: ## make debian:bookworm-slim with debootstrap, where no registry has it (MIRROR)
	@python3 -B tools/baseimage.py $(if $(MIRROR),"$(MIRROR)")

bench: ## measure something beside something else (BENCH=spawn, admission, ledger or day; BENCH_ARGS)
	@$(SETUP) test
	@$(PY) "benchmarks/$(BENCH)" $(BENCH_ARGS)

docs: ## build the documentation to docs/_build (a broken link or a warning fails)
	@$(SETUP) docs
	@$(PY) docs/make_reference.py
	@$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "Open docs/_build/index.html"

pictures: ## make the README's pictures anew, with a browser and a platform of its own
	@$(SETUP) test
	@$(PY) docs/make_screenshots.py

lock: ## write requirements/*.txt anew (LOCK_ARGS=--upgrade moves the versions)
	@$(SETUP) dev
	@LOCK_ARGS="$(LOCK_ARGS)" sh tools/lock.sh

clean: ## remove what was built; .run, the demo's accounts and files, stays
	rm -rf .venv node_modules .tools build dist .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis docs/_build test-artifacts
	@find spawner images tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -d .run ]; then echo "Kept .run (accounts, leases, files of the demo); remove it with: rm -r .run"; fi
