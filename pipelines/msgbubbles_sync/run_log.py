"""Record every run: a line of JSON next to the database, and a row of `msgbubbles.sync_runs` in it.

The line is written however the run ended, even if the database could not be opened. The table is written whenever the
database is published, and so is `msgbubbles.failed_reads`: what could not be read and is tried again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import duckdb

from msgbubbles.handles import parse_handle
from msgbubbles.storable import replace_in_json, replace_in_text
from msgbubbles.tables import ColumnType
from msgbubbles.times import from_epoch_ms

from .run_record import RunRecord
from .sql import create_table, insert_rows, transaction
from .tables import FAILED_READS, SYNC_RUNS

if TYPE_CHECKING:
    from msgbubbles.source.state import FailedRead

FILE = "runs.jsonl"
MAX_LINES = 1000
IDS_SHOWN = 5


class RunLog:
    """The records of one warehouse's runs, oldest first."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def add(self, record: RunRecord) -> None:
        """Append a line, all or nothing, and remove old lines; the table has more of them."""
        line = json.dumps(record, separators=(",", ":")) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        lines = self._path.read_bytes().splitlines(keepends=True)
        if len(lines) > 2 * MAX_LINES:
            new = self._path.with_suffix(".new")
            new.write_bytes(b"".join(lines[-MAX_LINES:]))
            new.replace(self._path)

    def records(self) -> list[RunRecord]:
        """Return all readable records; a power cut may leave half a line."""
        return self._read(0)

    def last(self) -> RunRecord | None:
        """Return the newest record; null if it is missing or damaged."""
        return next(iter(self._read(-1)), None)

    def _read(self, begin: int) -> list[RunRecord]:
        records: list[RunRecord] = []
        lines: list[str] = []
        with suppress(OSError):  # a sync renames a file that cannot be read
            lines = self._path.read_text(errors="replace").splitlines()[begin:]
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"run_id", "started_at", "outcome", "exit_status"} <= record.keys():
                records.append(cast(RunRecord, record))
        return records


def store(
    connection: duckdb.DuckDBPyConnection, records: Sequence[RunRecord], schema: str, oldest: datetime | None = None
) -> None:
    """Write these records to `sync_runs` in a schema of the warehouse.

    Runs from before `oldest` (UTC) are removed, and not written.
    """
    table = create_table(connection, schema, SYNC_RUNS)
    if oldest is not None:
        connection.execute(f"DELETE FROM {table} WHERE started_at < ?", [oldest])  # noqa: S608
        records = [record for record in records if datetime.fromisoformat(record["started_at"]) >= oldest]
    # The run that publishes has not ended yet, so the next one writes its row again.
    query = f"SELECT run_id, epoch_ms(ended_at) FROM {table} WHERE run_id IN (SELECT unnest(?::VARCHAR[]))"  # noqa: S608
    stored = {*connection.execute(query, [[record["run_id"] for record in records]]).fetchall()}
    new = [
        [_make_storable(record.get(column.name), column.type) for column in SYNC_RUNS.columns]
        for record in records
        if (record["run_id"], round(datetime.fromisoformat(record["ended_at"]).timestamp() * 1000)) not in stored
    ]
    if new:
        with transaction(connection):
            connection.executemany(f"DELETE FROM {table} WHERE run_id = ?", [row[:1] for row in new])  # noqa: S608
            insert_rows(connection, table, SYNC_RUNS, new)


def store_failed_reads(connection: duckdb.DuckDBPyConnection, failed: Iterable[FailedRead], schema: str) -> None:
    """Replace the rows of `failed_reads` in a schema of the warehouse."""
    rows = [
        (
            read.kind,
            read.id,
            from_epoch_ms(read.since_ms),
            from_epoch_ms(read.last_tried_ms),
            read.tries,
            read.http_status,
            read.error_code,
        )
        for read in failed
    ]
    table = create_table(connection, schema, FAILED_READS)
    with transaction(connection):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
        insert_rows(connection, table, FAILED_READS, rows)


def describe_failed_reads(failed: Sequence[FailedRead]) -> list[str]:
    """Return a line for each kind of failed reads, with the first ids and the last error."""
    lines = []
    for kind in sorted({read.kind for read in failed}):
        reads = [read for read in failed if read.kind == kind]
        # The id of a chat may be a phone number.
        ids = ", ".join("[handle]" if parse_handle(read.id) else read.id for read in reads[:IDS_SHOWN])
        more = f" and {len(reads) - IDS_SHOWN:,} more" if len(reads) > IDS_SHOWN else ""
        last = max(reads, key=lambda read: read.last_tried_ms)
        error = " ".join(str(part) for part in (last.http_status, last.error_code) if part) or "no response"
        lines.append(
            f"could not be read: {kind} {ids}{more} ({error}). The next run tries again; all other rows were read. "
            "See msgbubbles.failed_reads"
        )
    return lines


def describe_failed_parts(record: RunRecord) -> list[str]:
    """Return a line for each part of a run that failed alone."""
    return [f"{part}: {reason}" for part, reason in (record.get("failed_parts") or {}).items()]


def format_start(record: RunRecord) -> str:
    """Return when a run started, for people: UTC, to the minute."""
    return f"{datetime.fromisoformat(record['started_at']):%Y-%m-%d %H:%M}"


def to_iso(at_ms: int | None) -> str | None:
    return None if at_ms is None else from_epoch_ms(at_ms).isoformat(timespec="milliseconds")


def _make_storable(value: Any, kind: ColumnType) -> Any:
    """Return a value that every destination can store: it may contain field names, which the API makes up."""
    if kind == "json" and value is not None:
        return replace_in_json(json.dumps(value))
    return replace_in_text(value) if isinstance(value, str) else value
