# make demo   set everything up, and run the job against a made-up account
# make test   set everything up, and run lint, types and tests
# make lock   resolve the dependencies anew

# A command that cannot cache its bytecode compiles dbt and dlt at every start.
unexport PYTHONDONTWRITEBYTECODE
# The certificates that this machine trusts, a company's own among them.
export UV_SYSTEM_CERTS ?= 1

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test lock clean

demo: .venv/ready
	@$(PY) pipelines/chats.py --sandbox --database demo.duckdb

test: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest

# With uv on the path this takes seconds; without it, uv is installed into the environment first.
.venv/ready: requirements.lock
	@echo 'Setting up .venv'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@command -v uv >/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check uv
	@PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip sync --quiet --python $(PY) --require-hashes requirements.lock
	@touch $@

lock: .venv/ready
	PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes \
		--no-annotate --no-header --quiet --output-file requirements.lock

clean:
	rm -rf .venv .msgbubbles *.duckdb .pytest_cache .mypy_cache .ruff_cache .hypothesis notebooks/__marimo__
