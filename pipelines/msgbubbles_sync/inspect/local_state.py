"""Read what a warehouse knows about itself, without a request and without its lock.

That is the states of the streams, the records of the runs, and rows of the published tables.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, cast

from msgbubbles.source.coverage import Coverage
from msgbubbles.source.lazy_dlt import versioned_state
from msgbubbles.source.state import States
from msgbubbles.times import from_epoch_ms
from msgbubbles_sync.context import Context
from msgbubbles_sync.files import read_json
from msgbubbles_sync.run_log import RunLog
from msgbubbles_sync.run_record import RunRecord
from msgbubbles_sync.tables import SYNC_RUNS
from msgbubbles_sync.workspace import PIPELINE

CURSORS = {"chats": "last_message_at", "messages": "cursor_at"}
PUBLISHED_STATE = """SELECT state FROM msgbubbles._dlt_pipeline_state WHERE pipeline_name = 'msgbubbles'
ORDER BY version DESC, created_at DESC LIMIT 1"""


class LocalState:
    """The stored facts about a warehouse. States and records are read once, when they are first needed."""

    def __init__(self, context: Context) -> None:
        self.workspace, self.destination = context.workspace, context.destination
        self.settings = context.settings

    @cached_property
    def states(self) -> States:
        """The states of the streams: from the job's own files, or else from the published tables.

        Raises `ConfigurationError` if a newer release wrote them.
        """
        state = read_json(self.workspace.dlt_folder / PIPELINE / "state.json")
        if not isinstance(state, dict):
            rows = self._read(PUBLISHED_STATE)
            state = versioned_state.decompress_state(rows[0][0]) if rows else {}
        return States.from_pipeline(state)

    def load_coverage(self, stream: str) -> Coverage:
        """Return which intervals of a stream have been read, and when."""
        return Coverage(self.states.get_list(stream).covered)

    @cached_property
    def records(self) -> list[RunRecord]:
        """The records of the runs, oldest first: those of the run log, and older ones from the published table."""
        by_id = {record["run_id"]: record for record in self._read_published_records()}
        by_id |= {record["run_id"]: record for record in RunLog(self.workspace.folder).records()}
        return sorted(by_id.values(), key=lambda record: str(record["started_at"]))

    def _read_published_records(self) -> list[RunRecord]:
        names = ", ".join(SYNC_RUNS.column_names)
        query = f"SELECT {names} FROM msgbubbles.{SYNC_RUNS.name} ORDER BY started_at DESC LIMIT 1000"  # noqa: S608
        records = []
        for row in self._read(query):
            record = dict(zip(SYNC_RUNS.column_names, row, strict=True))
            for column in SYNC_RUNS.columns:
                value = record[column.name]
                if column.type == "json" and value is not None:
                    record[column.name] = json.loads(value)
                elif column.type == "timestamp" and value is not None:
                    record[column.name] = value.isoformat(timespec="milliseconds")
            records.append(cast(RunRecord, record))
        return records

    def count_rows(self, stream: str, lo_ms: int, hi_ms: int) -> int:
        """Count the published rows of an interval."""
        cursor = CURSORS[stream]
        query = f"SELECT count(*) FROM msgbubbles.{stream} WHERE {cursor} >= ? AND {cursor} < ?"  # noqa: S608
        rows = self._read(query, from_epoch_ms(lo_ms), from_epoch_ms(hi_ms))
        return int(rows[0][0]) if rows else 0

    def find_oldest_ms(self, stream: str) -> int | None:
        """Return the oldest cursor time of a stream's published rows."""
        rows = self._read(f"SELECT epoch_ms(min({CURSORS[stream]})) FROM msgbubbles.{stream}")  # noqa: S608
        return rows[0][0] if rows else None

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self.destination.open_query() as fetch:
            return fetch(query, *values)
