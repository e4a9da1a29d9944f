# make demo   set everything up, and run the job against a made-up account
# make test   set everything up, and run lint, types and tests
# make test-spark   install Spark too, and run what is tested with it; takes some seven minutes, and Java 17 or 21
# make docs   what every column of the warehouse means, how they are tested and made, as one page
# make bench  speed, cost and memory beside what else one could use; takes a while, and makes environments for the others
# make audit  look up whether a known vulnerability is in what is locked
# make lock   resolve the dependencies anew

# A command that cannot cache its bytecode compiles dbt and dlt at every start.
unexport PYTHONDONTWRITEBYTECODE
# The certificates that this machine trusts, a company's own among them.
export UV_SYSTEM_CERTS ?= 1

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test test-spark docs bench audit lock clean

demo: .venv/ready
	@$(PY) pipelines/chats.py --sandbox --database demo.duckdb

test: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	PYTHONPATH=pipelines .venv/bin/lint-imports --no-logo --no-cache
	$(PY) -m pytest

test-spark: .venv/spark
	$(PY) -m pytest -m spark --numprocesses=0

# Of a copy: dbt opens a database to write it, and would keep others from reading it.
DATABASE ?= $(firstword $(wildcard warehouse.duckdb demo.duckdb))
DOCS := $(CURDIR)/build/docs

docs: .venv/ready
	@test -f '$(DATABASE)' || { echo 'There is no database yet: make demo, or make docs DATABASE=path/to/the.duckdb'; exit 2; }
	@mkdir -p '$(DOCS)' && cp '$(DATABASE)' '$(DOCS)/docs.duckdb'
	@MSGBUBBLES_DUCKDB_PATH='$(DOCS)/docs.duckdb' .venv/bin/dbt docs generate --static --quiet \
		--project-dir transforms --profiles-dir transforms --target-path '$(DOCS)' --log-path '$(DOCS)'
	@rm '$(DOCS)/docs.duckdb'
	@echo 'Open $(DOCS)/static_index.html'

bench: .venv/ready
	@$(PY) benchmarks/compare.py

# With uv on the path this takes seconds; without it, uv is installed into the environment first.
.venv/ready: requirements.lock
	@echo 'Setting up .venv'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@command -v uv >/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check uv
	@PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip sync --quiet --python $(PY) --require-hashes requirements.lock
	@touch $@

.venv/spark: requirements-spark.lock .venv/ready
	PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip install --quiet --python $(PY) --no-deps --require-hashes -r requirements-spark.lock
	@touch $@

# Strict: what cannot be looked up is no success.
audit: .venv/ready
	PATH="$$PATH:$(CURDIR)/.venv/bin" uv tool run --quiet pip-audit --strict --progress-spinner off \
		--requirement requirements.lock --require-hashes --disable-pip

# Spark is larger than all else together, and so in a file of its own, which has what it needs beside requirements.lock.
COMPILE := uv pip compile pyproject.toml --universal --generate-hashes --no-annotate --no-header --quiet \
	--no-emit-package dbt-core-experimental-parser
lock: .venv/ready
	PATH="$$PATH:$(CURDIR)/.venv/bin" $(COMPILE) --extra groups --extra webhooks --extra postgres --extra ducklake --extra notebooks \
		--group dev --output-file requirements.lock
	PATH="$$PATH:$(CURDIR)/.venv/bin" $(COMPILE) --extra spark --constraints requirements.lock \
		$$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' requirements.lock) --output-file requirements-spark.lock

clean:
	rm -rf .venv .msgbubbles *.duckdb build .pytest_cache .mypy_cache .ruff_cache .hypothesis notebooks/__marimo__
