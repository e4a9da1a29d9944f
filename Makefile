# make demo        set everything up, and sync a simulated account
# make check       run lint, types, words and the quick tests that start no process; a minute on two cores
# make test        set everything up, and run lint, types, words and all tests but Spark's; NIGHTLY=1 tries more
# make test-spark  install Spark too, and run its tests; some seven minutes, with Java 17 or 21
# make test-browser  install Playwright too, and open the report and the dashboard in Chromium or Chrome
# make words       find words that docs/words.txt replaces, in Markdown, code, SQL and YAML
# make docs        build a page with every column of the warehouse, its tests and its origin
# make bench       measure speed, cost and memory next to other tools; takes a while, and makes environments for them
# make audit       look for known vulnerabilities in the locked packages
# make lock        resolve the dependencies again
# make clean       delete the environment, all local databases and caches

# A command that cannot cache its bytecode compiles dbt and dlt at every start.
unexport PYTHONDONTWRITEBYTECODE
# The certificates that this machine trusts, a company's own among them.
export UV_SYSTEM_CERTS ?= 1

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo check lint types words unit test pytest test-spark test-browser docs bench audit lock clean

demo: .venv/ready
	@$(PY) pipelines/chats.py --sandbox --database demo.duckdb

check: .venv/ready
	@$(MAKE) --no-print-directory --jobs=2 types unit lint words

# The types are checked during the tests.
test: .venv/ready
	@$(MAKE) --no-print-directory --jobs=2 lint words types pytest

pytest: .venv/compiled
	$(PY) -m pytest

lint: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PYTHONPATH=pipelines .venv/bin/lint-imports --no-logo --no-cache

types: .venv/ready
	$(PY) -m mypy

unit: .venv/ready
	$(PY) -m pytest --quiet --numprocesses=3 -m 'not slow and not spark' tests/msgbubbles tests/msgbubbles_sync

test-spark: .venv/spark
	$(PY) -m pytest -m spark --numprocesses=0

test-browser: .venv/browser
	$(PY) -m pytest --numprocesses=0 tests/e2e/test_browser.py

WORDS := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md Makefile docs dlt_config deploy examples \
	pipelines transforms notebooks benchmarks tests

words: .venv/ready
	.venv/bin/codespell $(WORDS)

# From a copy: dbt opens a database to write to it, and would keep others from reading it.
DATABASES := $(if $(DATABASE),'$(DATABASE)',$(wildcard warehouse.duckdb demo.duckdb))
DOCS := $(CURDIR)/build/docs
HAS_MARTS := import duckdb, sys; duckdb.connect(sys.argv[1], read_only=True).execute("FROM duckdb_columns() WHERE schema_name = ?", ["marts"]).fetchone() or sys.exit(1)

docs: .venv/ready
	@umask 077; mkdir -p '$(DOCS)' && rm -f '$(DOCS)/docs.duckdb'; for database in $(DATABASES); do \
		test -f "$$database" || { echo "$$database does not exist."; continue; }; \
		if $(PY) -c '$(HAS_MARTS)' "$$database" 2>/dev/null; then install -m 600 "$$database" '$(DOCS)/docs.duckdb'; break; fi; \
		echo "Skipped $$database, because it has no marts. Run the sync without --no-transform."; \
	done
	@test -f '$(DOCS)/docs.duckdb' || { echo 'There is no database with marts. Run make demo, or make docs DATABASE=path/to/the.duckdb'; exit 2; }
	@umask 077; MSGBUBBLES_DUCKDB_PATH='$(DOCS)/docs.duckdb' .venv/bin/dbt docs generate --static --quiet \
		--project-dir transforms --profiles-dir transforms --target-path '$(DOCS)' --log-path '$(DOCS)'
	@rm '$(DOCS)/docs.duckdb'
	@echo 'Open $(DOCS)/static_index.html'

bench: .venv/ready
	@$(PY) benchmarks/compare.py
	@$(PY) benchmarks/daily.py
	@$(PY) benchmarks/marts.py --messages 200000 --messages 2000000 --messages 10000000

# With uv on the path this takes seconds; without it, uv is installed into the environment first.
.venv/ready: requirements.lock
	@echo 'Setting up .venv'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@command -v uv >/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check uv
	@PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip sync --quiet --python $(PY) --require-hashes requirements.lock
	@touch $@

# Otherwise each worker of the first tests compiles the libraries.
.venv/compiled: .venv/ready
	@$(PY) -m pytest --collect-only --quiet --numprocesses=0 >/dev/null; touch $@

.venv/spark .venv/browser: .venv/%: requirements-%.lock .venv/ready
	PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip install --quiet --python $(PY) --no-deps --require-hashes -r $<
	@touch $@

# Strict: a package that cannot be looked up is a failure.
audit: .venv/ready
	PATH="$$PATH:$(CURDIR)/.venv/bin" uv tool run --quiet pip-audit --strict --progress-spinner off \
		--requirement requirements.lock --require-hashes --disable-pip

# Spark is larger than everything else together, and Playwright is large. What each needs on top of requirements.lock has a
# file of its own.
COMPILE := uv pip compile pyproject.toml --universal --generate-hashes --no-annotate --no-header --quiet \
	--no-emit-package dbt-core-experimental-parser
ON_TOP = --constraints requirements.lock $$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' requirements.lock)
lock: .venv/ready
	PATH="$$PATH:$(CURDIR)/.venv/bin" $(COMPILE) --extra groups --extra webhooks --extra postgres --extra ducklake --extra notebooks \
		--group dev --output-file requirements.lock
	PATH="$$PATH:$(CURDIR)/.venv/bin" $(COMPILE) --extra spark $(ON_TOP) --output-file requirements-spark.lock
	PATH="$$PATH:$(CURDIR)/.venv/bin" $(COMPILE) --group browser $(ON_TOP) --output-file requirements-browser.lock

clean:
	rm -rf .venv .msgbubbles *.duckdb build .pytest_cache .mypy_cache .ruff_cache .hypothesis notebooks/__marimo__
