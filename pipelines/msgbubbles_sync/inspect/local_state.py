"""What a warehouse says of itself, without a request and without its lock: the states of the readers, the records of
the runs, and rows of the published file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from msgbubbles.source.coverage import Coverage
from msgbubbles.source.state import States
from msgbubbles.times import from_epoch_ms
from msgbubbles_sync.context import Context
from msgbubbles_sync.run_log import RunLog
from msgbubbles_sync.tables import SYNC_RUNS

CURSORS = {"chats": "last_message_at", "messages": "cursor_at"}


class Known:
    """Reads what is there when it is asked."""

    def __init__(self, context: Context) -> None:
        self.workspace, self.destination = context.workspace, context.destination

    def states(self) -> States:
        """Return the states of the readers: those of the job's own files, else of the published one.

        Raises `ConfigurationError` when a newer version wrote them.
        """
        path = self.workspace.folder / "dlt" / "msgbubbles" / "state.json"
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError):
            state = None
        if not isinstance(state, dict):
            state = self._published_state()
        source: dict[str, Any] = state.get("sources", {}).get("msgbubbles", {})
        return States.from_resources(source.get("resources", {}))

    def _published_state(self) -> dict[str, Any]:
        from dlt.common.versioned_state import decompress_state

        query = (
            "SELECT state FROM msgbubbles._dlt_pipeline_state WHERE pipeline_name = 'msgbubbles' "
            "ORDER BY version DESC, created_at DESC LIMIT 1"
        )
        with self._published() as database:
            rows = [] if database is None else _all(database, query)
        return dict(decompress_state(rows[0][0])) if rows else {}

    def coverage(self, stream: str) -> Coverage:
        """Which stretches of a stream have been read, and when."""
        return Coverage(self.states().of_list(stream).covered)

    def records(self) -> list[dict[str, Any]]:
        """The records of the runs, oldest first: the job's own, and the older ones of the published file."""
        found = {record["run_id"]: record for record in self._published_records()}
        found |= {record["run_id"]: record for record in RunLog(self.workspace.folder).records()}
        return sorted(found.values(), key=lambda record: str(record["started_at"]))

    def _published_records(self) -> list[dict[str, Any]]:
        names = ", ".join(SYNC_RUNS.column_names)
        query = f"SELECT {names} FROM msgbubbles.{SYNC_RUNS.name} ORDER BY started_at DESC LIMIT 1000"  # noqa: S608
        with self._published() as database:
            rows = [] if database is None else _all(database, query)
        records = []
        for row in rows:
            record = dict(zip(SYNC_RUNS.column_names, row, strict=True))
            for column in SYNC_RUNS.columns:
                value = record[column.name]
                if column.type == "json" and value is not None:
                    record[column.name] = json.loads(value)
                elif column.type == "timestamp" and value is not None:
                    record[column.name] = value.isoformat(timespec="milliseconds")
            records.append(record)
        return records

    def rows_between(self, stream: str, lo_ms: int, hi_ms: int) -> int:
        """How many published rows lie in a stretch."""
        cursor = CURSORS[stream]
        query = f"SELECT count(*) FROM msgbubbles.{stream} WHERE {cursor} >= ? AND {cursor} < ?"  # noqa: S608
        with self._published() as database:
            rows = [] if database is None else _all(database, query, from_epoch_ms(lo_ms), from_epoch_ms(hi_ms))
        return int(rows[0][0]) if rows else 0

    def oldest_ms(self, stream: str) -> int | None:
        """The oldest instant of a stream's published rows."""
        query = f"SELECT epoch_ms(min({CURSORS[stream]})) FROM msgbubbles.{stream}"  # noqa: S608
        with self._published() as database:
            rows = [] if database is None else _all(database, query)
        return rows[0][0] if rows else None

    @contextmanager
    def _published(self) -> Iterator[duckdb.DuckDBPyConnection | None]:
        if not self.destination.exists():
            yield None
            return
        with self.destination.open_reader() as connection:
            yield connection


def _all(database: duckdb.DuckDBPyConnection, query: str, *values: Any) -> list[Any]:
    try:
        return database.execute(query, values).fetchall()
    except duckdb.CatalogException:
        return []
