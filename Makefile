# `make quickstart` and `make test` work on a machine with Python 3.11, 3.12 or 3.13 and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
RUN := .venv/bin/python
READY := .venv/.ready

.PHONY: quickstart test test-first test-second test-all slow-first slow-second test-versions dist lint docs bench trilemma tables fuzz kills clean

quickstart: $(READY)
	$(RUN) experiments/quickstart.py

# Lint, format, tests and every example in the docs: 20 minutes of a core, in two halves side by side: 11 minutes on two.
# Most of it is compiling, on one core: each half has a cache of its own, and XLA leaves out what makes programs fast.
FIRST := tests/convert tests/data tests/docs tests/energy tests/grouping tests/nn tests/report
QUICK := XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CACHE = JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.cache/$@"

test: lint
	@$(MAKE) --no-print-directory --jobs=2 test-first test-second

test-first: $(READY)
	$(QUICK) $(CACHE) $(RUN) -m pytest -m "not slow" $(FIRST)

test-second: $(READY)
	$(QUICK) $(CACHE) $(RUN) -m pytest -m "not slow" tests ge2mst_jax $(FIRST:%=--ignore=%)

# Every test: then the slow ones, compiled as users have it: killed and resumed runs, several processes, whole scripts.
test-all: test
	@$(MAKE) --no-print-directory --jobs=2 slow-first slow-second

slow-first: $(READY)
	$(CACHE) $(RUN) -m pytest -m slow tests ge2mst_jax --ignore=tests/train --ignore=tests/fuzz

slow-second: $(READY)
	$(CACHE) $(RUN) -m pytest -m slow tests/train tests/fuzz

# The fast tests, and the wheel in an empty environment, on every Python that is found; or VERSIONS="3.13".
VERSIONS ?= 3.11 3.12 3.13
test-versions:
	tests/versions.sh $(VERSIONS)

# Wheel and source archive in dist/, checked.
dist: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# The documentation site, into .cache/site; a link that leads nowhere ends it.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

.venv/.docs: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable .[docs]
	@touch $@

bench: $(READY)
	$(RUN) experiments/bench.py

# Rows of the tables, trained and measured (hours; goes on where it was), and docs/results.md written from them.
trilemma: $(READY)
	$(RUN) experiments/trilemma.py

tables: $(READY)
	$(RUN) experiments/tables.py

# Malformed inputs through functions and command lines (10 minutes); kills and flipped bits (half an hour). Each writes
# its table into docs/reliability.md.
fuzz: $(READY)
	$(RUN) tests/fuzz/run.py --write docs/reliability.md

kills: $(READY)
	$(RUN) tests/fuzz/kills.py --write docs/reliability.md
	$(RUN) tests/fuzz/bucket_kills.py --write docs/reliability.md

# Pins of the versions that were tested on each Python: newer ones hold newer JAX.
$(READY): requirements.txt requirements-3.12.txt requirements-3.13.txt setup.cfg pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed (found: $(PYTHON)); set PYTHON=/path/to/python3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv .venv
	version=$$($(RUN) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		pins=requirements-$$version.txt; test $$version != 3.11 || pins=requirements.txt; \
		$(RUN) -m pip install --quiet --disable-pip-version-check -r $$pins
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

clean:
	rm -rf .venv .cache dist .pytest_cache .ruff_cache .hypothesis build *.egg-info
