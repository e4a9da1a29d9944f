"""Plan and apply the groups of a table, and record every operation in a ledger."""

from importlib.util import find_spec

from msgbubbles_sync.extras import format_install_command

if find_spec("duckdb") is None:
    raise ModuleNotFoundError(f"duckdb is not installed: {format_install_command('groups')}", name="duckdb")
