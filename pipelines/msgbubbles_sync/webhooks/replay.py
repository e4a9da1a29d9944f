"""Load dead letters and stored events again: after an upgrade that reads more of them, or after rows were lost.

They are written to the spool before anything else changes, so a process that is killed loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import msgspec

from msgbubbles.tables import Strategy
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.text import format_count

from .deliveries import split_deliveries
from .load import LoadResult, dead_letter_folder, load_events, load_segments
from .spool import SUFFIX, Delivery, read_segment, spool_folder

BATCH_EVENTS = 5000
STORED_EVENTS = """
SELECT event_id, received_at, CAST(payload AS VARCHAR) FROM {schema}.webhook_events
WHERE received_at >= ? ORDER BY received_at"""


@dataclass
class ReplayResult(LoadResult):
    """The result of a replay. `unreadable_files` are those of the spool, which is loaded first.

    `dead_letters_unreadable` stay where they are. `events_without_payload` cannot be read again, because the privacy
    policy drops payloads.
    """

    dead_letters_replayed: int = 0
    dead_letters_unreadable: int = 0
    events_replayed: int = 0
    events_without_payload: int = 0

    def __str__(self) -> str:
        letters = format_count(self.dead_letters_replayed, "dead letter")
        text = f"{letters} and {format_count(self.events_replayed, 'event')} read again: {super().__str__()}"
        if self.dead_letters_unreadable:
            text += f" Not a delivery: {format_count(self.dead_letters_unreadable, 'dead letter')}, "
            text += f"left in {self.dead_letters}."
        if self.events_without_payload:
            text += f" Without a payload to read again: {format_count(self.events_without_payload, 'event')}."
        return text

    @property
    def is_incomplete(self) -> bool:
        return super().is_incomplete or bool(self.dead_letters_unreadable)


def replay(context: Context, since: datetime | None) -> ReplayResult:
    """Load all dead letters again, and the events that were received since a time; null is none.

    The rows of these events are replaced, except in files, where the first row of an event stays. The caller holds the
    lock `job`. Raises as `load_events` does.
    """
    result = ReplayResult(dead_letters=dead_letter_folder(context.workspace))
    result.unreadable_files = load_events(context).unreadable_files  # the first delivery of an event is stored
    spool = spool_folder(context.workspace)
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    segments = []
    for deliveries in _read_events(context.destination, since, result) if since else ():
        result.events_replayed += len(deliveries)
        segments.append(_write_segment(spool, deliveries))
    folder = dead_letter_folder(context.workspace)
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
        deliveries, unreadable = _read_dead_letters(path)
        result.dead_letters_unreadable += len(unreadable)
        if deliveries:
            result.dead_letters_replayed += len(deliveries)
            segments.append(_write_segment(spool, deliveries))
            if unreadable:
                write_privately(path, b"".join(line + b"\n" for line in unreadable))
            else:
                path.unlink()
    strategy: Strategy = "insert-only" if context.workspace.destination == "filesystem" else "delete-insert"
    load_segments(context, map(read_segment, segments), result, strategy)
    return result


def _read_events(destination: Destination, since: datetime, result: ReplayResult) -> Iterator[list[Delivery]]:
    """Yield the stored events with a payload, as deliveries in batches."""
    with destination.open_writer() as connection:
        try:
            rows = connection.execute(STORED_EVENTS.format(schema=destination.write_schema), [since])
        except duckdb.CatalogException:
            return
        while batch := rows.fetchmany(BATCH_EVENTS):
            deliveries = [Delivery(event_id, at, payload) for event_id, at, payload in batch if payload]
            result.events_without_payload += len(batch) - len(deliveries)
            if deliveries:
                yield deliveries


def _read_dead_letters(path: Path) -> tuple[list[Delivery], list[bytes]]:
    """Return the deliveries in a file of dead letters, and the lines that are none.

    A file of events that the destination refused has their payloads.
    """
    if path.name.startswith("refused."):
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        lines = path.read_bytes().splitlines()
        return [delivery for line in lines for delivery in split_deliveries(line, None, "", at)], []
    segment = read_segment(path)
    return segment.deliveries, segment.malformed


def _write_segment(spool: Path, deliveries: Sequence[Delivery]) -> Path:
    """Write a finished segment durably."""
    lines = b"".join(msgspec.json.encode(delivery) + b"\n" for delivery in deliveries)
    return write_privately(spool / f"{time.time_ns()}-replay{SUFFIX}", lines)
