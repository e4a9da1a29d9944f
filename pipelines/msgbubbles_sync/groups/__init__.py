"""Groups declared in a table: planned, applied, and recorded in a ledger."""

from importlib.util import find_spec

if find_spec("duckdb") is None:
    raise ModuleNotFoundError(
        "duckdb is not installed: pip install '/path/to/project[groups]'",
        name="duckdb",
    )
