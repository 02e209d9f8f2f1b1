# `make demo` runs the main job, `make test` passes all tests; both set up what they need. `make help` lists the rest.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv from PATH, or one of our own in .cache, made with nothing but Python.
UV := $(shell command -v uv || echo .cache/uv/bin/uv)
# Trust what the system trusts: networks with a proxy of their own have their own certificates.
export UV_SYSTEM_CERTS := 1
# Compiled once: without bytecode on the disk a worker takes four times the time to start, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest
# `make test PROCESSES=` runs the tests in one process, one after another. In the order of the folders what takes long begins early.
PROCESSES ?= -n 2 --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test venv services services-stop sandbox-image lint format docs docs-serve unit db sandbox e2e chaos attack bench bench-check build clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: venv ## From a fresh clone to a finished run: embedded PostgreSQL, a sandbox, real tasks
	@$(BIN)/continuum demo

# Lint and docs go beside the tests, which wait a lot; what they found is told after them, where nobody overlooks it.
test: venv services ## Everything: services, lint, types, and all tests
	@mkdir -p build
	@$(MAKE) --no-print-directory -k lint docs >build/checks.log 2>&1 & checks=$$!; \
	trap "kill $$checks 2>/dev/null" INT TERM; \
	$(PYTEST) $(PROCESSES) tests; tests=$$?; \
	wait $$checks; checked=$$?; cat build/checks.log; \
	[ $$checked -eq 0 ] || echo "make lint docs: failed, see above" >&2; \
	exit $$((tests || checked))

venv: $(VENV)/.complete ## Make .venv from the lock file
$(VENV)/.complete: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --quiet --locked --all-extras --all-groups
	@touch $@

.cache/uv/bin/uv:
	@sh scripts/install-uv.sh "$(PYTHON)" .cache/uv

services: ## Install and start what the tests need (Debian as root), or say what is missing
	@sh scripts/install-services.sh

services-stop: ## Stop a dockerd that `make services` started
	@sh scripts/install-services.sh stop

sandbox-image: ## Build the sandbox image from Debian packages, without a registry
	@sh scripts/make-sandbox-image.sh

lint: venv ## Check style, formatting, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv ## Format, and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Not quietly: a warning that is not said does not count as one.
docs: venv ## Build the documentation site into build/site; every link and anchor must lead somewhere
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: venv ## Show the documentation site at http://127.0.0.1:8000, and again whenever a page changes
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --strict

unit: venv ## Tests without any service, on the virtual clock
	$(PYTEST) tests/unit

db: venv ## The adapter suite on every database at hand
	$(PYTEST) tests/db

sandbox: venv ## Sandboxes for real
	$(PYTEST) tests/sandbox

e2e: venv ## Whole workers, and what happens when their parts die
	$(PYTEST) tests/e2e

chaos: venv ## Break a database under load and judge what was recorded; CHAOS="--help" lists where and how
	@$(BIN)/python -m tests.chaos $(CHAOS)

attack: venv services ## Attack every kind of sandbox, and show as a table what came of it; ATTACK="--help" says how
	@$(BIN)/python -m tests.attacks $(ATTACK)

bench: venv services ## Measure it all beside its ceilings and its peers; BENCH="--help" lists the parts
	@$(BIN)/python -m benchmarks $(BENCH)

bench-check: venv services ## Compare two commits in pairs of runs: make bench-check OLD=main NEW=HEAD
	@$(BIN)/python -m benchmarks.check $(OLD) $(NEW) $(BENCH)

build: venv ## Build wheel and sdist into dist/
	$(UV) build

clean: ## Remove what make made, but for the demo's data
	rm -rf $(VENV) .cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
