"""What every run did: a line of JSON for each, beside the database, and the table `msgbubbles.sync_runs` in it; and
the table `msgbubbles.source.failed_reads`, what could not be read and is tried again.

The line is written whatever became of the run, also where the database could not be opened. The tables are written
whenever the database is published.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from msgbubbles.handles import parse_handle
from msgbubbles.tables import ColumnType

from .tables import FAILED_READS, SQL_TYPES, SYNC_RUNS, column_definitions

if TYPE_CHECKING:
    from msgbubbles.source.state import FailedRead

KEPT_LINES = 1000
FAILED_SHOWN = 5


class RunLog:
    """The records of one warehouse's runs, oldest first."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "runs.jsonl"

    def add(self, record: dict[str, Any]) -> None:
        """Write a line, all or nothing, and forget those that are too many. The database has them longer."""
        line = json.dumps(record, separators=(",", ":")) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        lines = self._path.read_bytes().splitlines(keepends=True)
        if len(lines) > 2 * KEPT_LINES:
            kept = self._path.with_suffix(".new")
            kept.write_bytes(b"".join(lines[-KEPT_LINES:]))
            kept.replace(self._path)

    def records(self) -> list[dict[str, Any]]:
        """All records that can be read; a line that a power cut has halved cannot."""
        return self._read(0)

    def last(self) -> dict[str, Any] | None:
        """The newest record; null where there is none, or it cannot be read."""
        return next(iter(self._read(-1)), None)

    def _read(self, begin: int) -> list[dict[str, Any]]:
        found = []
        for line in self._path.read_text(errors="replace").splitlines()[begin:] if self._path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"run_id", "started_at", "outcome", "exit_status"} <= record.keys():
                found.append(record)
        return found


def store(connection: duckdb.DuckDBPyConnection, records: Iterable[dict[str, Any]], schema: str) -> None:
    """Bring `sync_runs` in a schema of the warehouse up to date with these records."""
    table = f"{schema}.{SYNC_RUNS.name}"
    rows = [_row(record) for record in records]
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({column_definitions(SYNC_RUNS)})")
    has = {row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
    for column in SYNC_RUNS.columns:
        if column.name not in has:  # made by an older version
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column.name} {SQL_TYPES[column.type]}")
    # The run that publishes is not quite over: its row is written once more by the next.
    known = connection.execute(f"SELECT run_id, epoch_ms(ended_at) FROM {table}").fetchall()  # noqa: S608
    new = [row for row in rows if (row[0], _ended_ms(row)) not in known]
    if new:
        names, marks = ", ".join(SYNC_RUNS.column_names), ", ".join("?" * len(SYNC_RUNS.columns))
        connection.execute("BEGIN")
        connection.executemany(f"DELETE FROM {table} WHERE run_id = ?", [row[:1] for row in new])  # noqa: S608
        connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", new)  # noqa: S608
        connection.execute("COMMIT")


def store_failed_reads(connection: duckdb.DuckDBPyConnection, failed: Iterable[FailedRead], schema: str) -> None:
    """Make `failed_reads` in a schema of the warehouse hold these units and no others."""
    table = f"{schema}.{FAILED_READS.name}"
    rows = [
        (one.kind, one.id, _at(one.since_ms), _at(one.last_tried_ms), one.tries, one.http_status, one.error_code)
        for one in failed
    ]
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({column_definitions(FAILED_READS)})")
    connection.execute("BEGIN")
    connection.execute(f"DELETE FROM {table}")  # noqa: S608
    if rows:
        connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
    connection.execute("COMMIT")


def describe_failed_reads(failed: Sequence[FailedRead]) -> list[str]:
    """Return a line for each kind of what could not be read, with the first ids and the last error."""
    lines = []
    for kind in sorted({one.kind for one in failed}):
        of_kind = [one for one in failed if one.kind == kind]
        # A message may name a chat that is somebody's number.
        ids = ", ".join("[handle]" if parse_handle(one.id) else one.id for one in of_kind[:FAILED_SHOWN])
        more = f" and {len(of_kind) - FAILED_SHOWN:,} more" if len(of_kind) > FAILED_SHOWN else ""
        last = max(of_kind, key=lambda one: one.last_tried_ms)
        error = " ".join(str(one) for one in (last.http_status, last.error_code) if one) or "no answer"
        lines.append(
            f"could not be read: {kind} {ids}{more} ({error}); everything else was, and these are tried again. "
            "They are in msgbubbles.failed_reads"
        )
    return lines


def iso_timestamp(at_ms: int | None) -> str | None:
    return None if at_ms is None else _at(at_ms).isoformat(timespec="milliseconds")


def _at(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _ended_ms(row: Sequence[Any]) -> int:
    return round(datetime.fromisoformat(row[SYNC_RUNS.column_names.index("ended_at")]).timestamp() * 1000)


def _row(record: dict[str, Any]) -> Sequence[Any]:
    return [_stored(record.get(column.name), column.type) for column in SYNC_RUNS.columns]


def _stored(value: Any, kind: ColumnType) -> Any:
    """A value as every destination stores it: names of fields are in there, which the API makes."""
    from msgbubbles.source.storable import (  # imports dlt, which has to be configured before
        storable_json,
        storable_text,
    )

    if kind == "json" and value is not None:
        return storable_json(json.dumps(value))
    return storable_text(value) if isinstance(value, str) else value
