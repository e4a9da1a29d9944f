"""Plan and apply the groups of a table, and record every operation in a ledger."""

from importlib.util import find_spec

if find_spec("duckdb") is None:
    raise ModuleNotFoundError("duckdb is not installed: pip install '/path/to/project[groups]'", name="duckdb")
