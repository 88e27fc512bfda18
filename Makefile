# `make quickstart` and `make test` work on a machine with Python 3.11 and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin/python
READY := .venv/.ready

.PHONY: quickstart test test-all lint bench fuzz kills clean

quickstart: $(READY)
	$(RUN) experiments/quickstart.py

# Lint, format, tests and every example in the docs, in under 10 minutes on 2 cores.
test: lint
	$(RUN) -m pytest -m "not slow"

# The slow ones too: killed and resumed runs, several processes, whole scripts.
test-all: lint
	$(RUN) -m pytest

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(READY)
	$(RUN) experiments/bench.py

# Malformed inputs through functions and command lines (10 minutes); kills and flipped bits (half an hour). Each writes
# its table into docs/reliability.md.
fuzz: $(READY)
	$(RUN) tests/fuzz/run.py --write docs/reliability.md

kills: $(READY)
	$(RUN) tests/fuzz/kills.py --write docs/reliability.md

$(READY): requirements.txt setup.cfg pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed (found: $(PYTHON)); set PYTHON=/path/to/python3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
