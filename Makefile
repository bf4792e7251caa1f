# make run    set up .venv, then train the default federation (synthetic street, four minutes on two cores)
# make test   set up .venv, then check style, types and documentation, and run all tests except slow ones and benchmarks
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
INSTALL_TOOLS := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
  -r requirements-setup.txt
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes --quiet \
  --no-emit-index-url --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help setup run test quick lint docs compiled unit integration slow faults bench lock clean

help:
	@echo "make setup        create .venv and install fedbench and its pinned requirements"
	@echo "make run          set up, then run the default federation (ARGS='--help' lists the options)"
	@echo "make test         set up, then run lint, docs, unit and integration: all checks of CI"
	@echo "make quick        lint, and the tests nearest to the changed files (half a minute)"
	@echo "make lint         ruff and mypy"
	@echo "make docs         write docs/specification.md, then build the documentation into site/; a dead link is an error"
	@echo "make unit         unit tests (minutes)"
	@echo "make integration  tests that start real services and runs (some twenty minutes)"
	@echo "make slow         tests that take long, most of them integration tests of many minutes each"
	@echo "make faults       the fault matrix, docs/faults.md (ARGS='--faults 20 --seed 3'; an hour and a half for 100)"
	@echo "make bench        benchmarks"
	@echo "make lock         compile requirements.txt and requirements-setup.txt again, to the newest versions"
	@echo "make clean        remove .venv, site/ and the tools' caches"
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 to 3.13) for .venv"

setup: .venv/.installed

$(BIN)/uv:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: $(PYTHON) not found: install Python 3.11 to 3.13, or name one: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13) and \
	  f"error: $(PYTHON) is Python {v[0]}.{v[1]}; expected 3.11 to 3.13: name another one, make setup PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot create virtual environments: on Debian and Ubuntu, apt install python3-venv" >&2; \
	  exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL_TOOLS)

# requirements.txt pins all direct and indirect requirements with the hashes of their files; requirements-setup.txt does
# the same for uv and the build tools. fedbench is installed last, without dependencies, so it adds no other package.
.venv/.installed: requirements.txt requirements-setup.txt pyproject.toml | $(BIN)/uv
	$(INSTALL_TOOLS)
	@echo "installing the pinned requirements into .venv: a minute or two, the first time"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

run: setup
	$(BIN)/fedbench run $(ARGS)

test: setup
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory integration

quick: setup
	$(BIN)/python -m tests.quick $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# Write to another file first, so that a failure leaves the page unchanged.
docs: setup
	$(BIN)/python docs/specification.py > .venv/specification.md
	cp .venv/specification.md docs/specification.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Tests start hundreds of processes. Each would compile our modules where PYTHONDONTWRITEBYTECODE is set.
compiled: setup
	@$(BIN)/python -m compileall -q fedbench.py flows infra tasks tests

unit: compiled
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not integration and not benchmark and not slow" --ignore tests/integration

integration: compiled
	$(BIN)/python -m pytest tests/integration -n 4 --dist loadfile -m "integration and not benchmark and not slow"

slow: setup
	$(BIN)/python -m pytest -m slow

faults: setup
	$(BIN)/python -m tests.faults $(ARGS)

bench: setup
	$(BIN)/python -m pytest tests/benchmarks -o python_files="bench_*.py test_*.py" -m benchmark -s

lock: $(BIN)/uv
	$(COMPILE) --extra dev --extra docs --extra export --extra laptop --extra postgresql pyproject.toml -o requirements.txt
	printf '%s\n' uv 'hatchling>=1.25,<2' editables | $(COMPILE) --constraints requirements.txt - -o requirements-setup.txt

clean:
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache
