"""Load rows into a DuckDB file as dlt does, but without it, into tables that dlt has created."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import duckdb
import msgspec

from msgbubbles.lazy_pyarrow import pa
from msgbubbles.source.stored import MissingTableError
from msgbubbles.tables import Strategy, Table
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.sql import quote_name, transaction
from msgbubbles_sync.workspace import DATASET, PIPELINE, Workspace

# The fields that dlt leaves out of the digest of a state: the others are the same in every working folder.
NOT_IN_DIGEST = ("_local", "_state_version", "_state_engine_version", "_version_hash")
# After these errors dlt may load what DuckDB has refused here: it adds columns, names rows, uses other statements. It
# would only meet others, such as that of a full disk, again.
DLT_IS_NEEDED = (
    duckdb.ProgrammingError, duckdb.DataError, duckdb.IntegrityError, duckdb.InternalError, duckdb.NotSupportedError,
)  # fmt: skip
NEWEST_STATE = """SELECT version_hash FROM msgbubbles._dlt_pipeline_state WHERE pipeline_name = ?
ORDER BY version DESC, _dlt_load_id DESC LIMIT 1"""
STORE_LOAD = """INSERT INTO msgbubbles._dlt_loads (load_id, schema_name, status, inserted_at)
VALUES (?, ?, 0, now())"""
STORE_STATE = """INSERT INTO msgbubbles._dlt_pipeline_state
(version, engine_version, pipeline_name, state, created_at, version_hash, _dlt_load_id, _dlt_id)
VALUES (?, ?, ?, ?, now(), ?, ?, ?)"""


class SqlClient:
    """Queries the loaded tables, with the methods of dlt's client that `Warehouse` uses."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.native_connection = connection

    def make_qualified_table_name(self, table: str) -> str:
        return f"{DATASET}.{table}"

    @contextmanager
    def execute_query(self, query: str, *values: Any) -> Iterator[duckdb.DuckDBPyConnection]:
        """Execute a query with %s for its values. Raises `MissingTableError`."""
        try:
            yield self.native_connection.execute(query.replace("%s", "?"), list(values))
        except duckdb.CatalogException as error:
            raise MissingTableError from error


def read_state(workspace: Workspace) -> bytes:
    """Return dlt's state after the last load; empty if it is missing, or a load is pending."""
    with suppress(OSError):
        return b"" if workspace.has_pending_load else (workspace.dlt_folder / PIPELINE / "state.json").read_bytes()
    return b""


def is_newest_state(connection: duckdb.DuckDBPyConnection, state: Mapping[str, Any]) -> bool:
    """Return whether the tables have this state of dlt, and not that of a load after it, which was killed."""
    with suppress(duckdb.CatalogException):
        return connection.execute(NEWEST_STATE, [PIPELINE]).fetchone() == (state["_version_hash"],)
    return False


def store_load(
    connection: duckdb.DuckDBPyConnection,
    workspace: Workspace,
    rows: Iterable[tuple[Table, pa.Table]],
    state: Mapping[str, Any],
) -> None:
    """Merge rows and store dlt's state with them, as one load. Raises as `merge_rows` does.

    If the process is killed before the state is in its file too, dlt takes it from the table.
    """
    parts: dict[str, tuple[Table, list[pa.Table]]] = {}
    for table, some in rows:
        parts.setdefault(table.name, (table, []))[1].append(some)
    new = _set_version(state)
    strategy: Strategy = "delete-insert"
    merged = ((table, pa.concat_tables(some), strategy) for table, some in parts.values())
    merge_rows(connection, PIPELINE, merged, new)
    write_privately(workspace.dlt_folder / PIPELINE / "state.json", msgspec.json.encode(new))


def _set_version(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with the version and the digest that dlt would give it."""
    content = {name: value for name, value in state.items() if name not in NOT_IN_DIGEST}
    digest = base64.b64encode(hashlib.sha3_256(msgspec.json.encode(content, order="sorted")).digest()).decode()
    version = state["_state_version"] + (digest != state["_version_hash"])
    local = {**state["_local"], "_last_extracted_hash": digest}
    return {**state, "_state_version": version, "_version_hash": digest, "_local": local}


def merge_rows(
    connection: duckdb.DuckDBPyConnection,
    pipeline: str,
    parts: Iterable[tuple[Table, pa.Table, Strategy]],
    state: Mapping[str, Any] | None = None,
) -> None:
    """Merge rows as dlt does, as one load of a pipeline, with its state if it has one.

    Of rows with one key, the one that was read last is stored. Raises `duckdb.Error`, and changes nothing, if a table
    or a column is missing, or refuses a value.
    """
    load_id = str(time.time())
    with connection.cursor() as cursor, transaction(cursor):
        for table, rows, strategy in parts:
            _merge_table(cursor, table, rows, strategy, load_id)
        cursor.execute(STORE_LOAD, [load_id, pipeline])
        if state is not None:
            shared = msgspec.json.encode({name: value for name, value in state.items() if name != "_local"})
            packed = base64.b64encode(zlib.compress(shared, level=9)).decode()
            versions = [state["_state_version"], state["_state_engine_version"], pipeline]
            row = [*versions, packed, state["_version_hash"], load_id, secrets.token_urlsafe(10)]
            cursor.execute(STORE_STATE, row)


def _merge_table(
    cursor: duckdb.DuckDBPyConnection, table: Table, rows: pa.Table, strategy: Strategy, load_id: str
) -> None:
    path, names, keys = f"{DATASET}.{table.name}", _list(rows.column_names), _list(table.key)
    is_same = " AND ".join(f"stored.{quote_name(key)} = incoming.{quote_name(key)}" for key in table.key)
    cursor.register("incoming", rows)
    if strategy == "delete-insert":
        cursor.execute(f"DELETE FROM {path} AS stored USING incoming WHERE {is_same}")  # noqa: S608
        is_wanted = "true"
    else:
        is_wanted = f"NOT EXISTS (SELECT 1 FROM {path} AS stored WHERE {is_same})"  # noqa: S608
    newest = f"row_number() OVER (PARTITION BY {keys} ORDER BY _fetched_at DESC) = 1"
    insert = f"INSERT INTO {path} ({names}, _dlt_load_id) SELECT {names}, ? FROM incoming WHERE {is_wanted}"  # noqa: S608
    cursor.execute(f"{insert} QUALIFY {newest}", [load_id])


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(quote_name, names))
