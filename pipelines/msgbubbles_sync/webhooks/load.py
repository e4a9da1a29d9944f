"""Load the spool into the warehouse: `webhook_events`, and the messages that the events have added or changed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from msgbubbles.lazy_pyarrow import pa
from msgbubbles.redact import Redactor
from msgbubbles.source.arrow import build_arrow_rows, build_arrow_table, build_item
from msgbubbles.source.compare import filter_rows
from msgbubbles.source.lazy_dlt import dlt, pipeline_exceptions
from msgbubbles.source.stored import Warehouse
from msgbubbles.tables import CHATS, MESSAGES, Strategy, Table
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.destinations.duckdb_file import DuckDBFile
from msgbubbles_sync.destinations.duckdb_load import DLT_IS_NEEDED, SqlClient, merge_rows
from msgbubbles_sync.destinations.load import build_fresh_pipeline
from msgbubbles_sync.destinations.screen import Screen, is_data_error
from msgbubbles_sync.files import move_damaged, write_privately
from msgbubbles_sync.policy.applied import read_own_numbers
from msgbubbles_sync.tables import WEBHOOK_EVENTS
from msgbubbles_sync.text import format_count
from msgbubbles_sync.workspace import Workspace

from .events import Event, drop_duplicates, parse_event
from .redact import drop_payload, redact_delivery
from .spool import Segment, list_segments, list_unreadable, spool_folder, take_finished, webhooks_folder
from .updates import (
    Scope,
    apply_events,
    build_chats,
    list_messages,
    select_changed_chats,
    to_rows,
)  # fmt: skip

PIPELINE = "msgbubbles_webhooks"
MAX_BATCH_EVENTS = 20_000
MAX_BATCH_CHARACTERS = 64 * 1024 * 1024


@dataclass
class LoadResult:
    """The result of a load.

    `deliveries` are events that are in the warehouse now, or were before; they added `messages_new` and changed
    `messages_changed`. `malformed` lines are in `dead_letters`. Events with `impossible_chat_ids` are stored without a
    chat; those with `unreadable_message_ids` are about a message whose id cannot be read. The events in
    `unreadable_files` of the spool are loaded once they can be read.
    """

    deliveries: int = 0
    messages_new: int = 0
    messages_changed: int = 0
    malformed: int = 0
    impossible_chat_ids: int = 0
    unreadable_message_ids: int = 0
    unreadable_files: int = 0
    dead_letters: Path | None = None

    def as_dict(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "dead_letters"}

    def __str__(self) -> str:
        new = format_count(self.messages_new, "new message")
        text = f"{format_count(self.deliveries, 'delivery')}, {new}, {self.messages_changed:,} changed."
        if self.malformed:
            text += f" Not an event: {format_count(self.malformed, 'line')}, moved to {self.dead_letters}."
        if self.impossible_chat_ids:
            text += f" Impossible chat id: {format_count(self.impossible_chat_ids, 'event')}, stored without a chat."
        if self.unreadable_message_ids:
            events = format_count(self.unreadable_message_ids, "event")
            text += f" Unreadable message: {events}, stored without one."
        if self.unreadable_files:
            text += f" {self.describe_unreadable_files()}."
        return text

    @property
    def is_incomplete(self) -> bool:
        return bool(self.malformed or self.unreadable_files)

    def describe_unreadable_files(self) -> str:
        return (
            f"{format_count(self.unreadable_files, 'file')} in webhooks/spool of the workspace, or that folder, cannot "
            "be read: give the user of this job access, and move away what is no file; the next load reads them"
        )


def dead_letter_folder(workspace: Workspace) -> Path:
    """Return the folder of the lines that are not events."""
    return webhooks_folder(workspace) / "malformed"


def load_events(context: Context) -> LoadResult:
    """Load the finished segments of the spool, and remove each when it is committed.

    The marts and the published file are marked as pending. The caller holds the lock `job`, and has prepared the
    destination. May be killed and repeated: a stored event stays as it is, and the state of a message never goes back.
    """
    spool = spool_folder(context.workspace)
    result = LoadResult(dead_letters=dead_letter_folder(context.workspace))
    if list_segments(spool):
        load_segments(context, take_finished(spool), result)
    result.unreadable_files = len(list_unreadable(spool))
    return result


def load_segments(
    context: Context, segments: Iterable[Segment], result: LoadResult, strategy: Strategy = "insert-only"
) -> None:
    """Load segments as `load_events` does, and count in `result`. With `delete-insert`, events replace stored rows."""
    destination, redactor = context.destination, context.redactor
    if redactor.needs_own_numbers:
        redactor.add_own_numbers(read_own_numbers(destination))
    load = _Load(destination, redactor, context.settings.source.start_ms, strategy, result)
    for batch in _batch_segments(segments):
        load.load_batch(batch)


def _batch_segments(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Collect segments into batches that fit into memory."""
    batch: list[Segment] = []
    events = characters = 0
    for segment in segments:
        batch.append(segment)
        events += len(segment.deliveries)
        characters += sum(len(delivery.body) for delivery in segment.deliveries)
        if events >= MAX_BATCH_EVENTS or characters >= MAX_BATCH_CHARACTERS:
            yield batch
            batch, events, characters = [], 0, 0
    if batch:
        yield batch


def count_dead_letters(workspace: Workspace) -> int:
    """Count the lines in the dead letter files that were not removed; a file that cannot be read counts as one."""
    count = 0
    for path in dead_letter_folder(workspace).glob("*.jsonl"):
        try:
            count += path.read_bytes().count(b"\n")
        except OSError:
            count += 1
    return count


@dataclass(frozen=True)
class _Load:
    destination: Destination
    redactor: Redactor
    start_ms: int
    # By default, a repeated event never replaces the stored one.
    strategy: Strategy
    result: LoadResult

    def load_batch(self, batch: list[Segment]) -> None:
        events: list[Event] = []
        for segment in batch:
            segment_events, malformed = self._parse(segment)
            events += segment_events
            self.result.malformed += len(malformed)
            # A malformed line may name anybody.
            if not self.redactor.policy.redacts:
                mentions_erased = self.redactor.mentions_erased
                lines = [line for line in malformed if not mentions_erased(line.decode("utf-8", "replace"))]
                self._write_dead_letters(segment.path.name, lines)
        if events:
            self._load(drop_duplicates(events))
        for segment in batch:
            segment.path.unlink()

    def _parse(self, segment: Segment) -> tuple[list[Event], list[bytes]]:
        """Return the redacted events of a segment, and its malformed lines."""
        events, malformed = [], list(segment.malformed)
        drops_payload = self.redactor.policy.webhook_payload == "drop"
        for delivery in segment.deliveries:
            redacted = redact_delivery(delivery, self.redactor)
            if redacted is None:
                continue
            event = parse_event(redacted)
            if event is not None:
                events.append(drop_payload(event) if drops_payload else event)
            else:
                # Encoded, because a body that is not JSON may contain line breaks.
                malformed.append(msgspec.json.encode(redacted))
        return events, malformed

    def _write_dead_letters(self, name: str, lines: list[bytes]) -> None:
        """Write lines to a file named after their segment, which a repeated load overwrites."""
        if lines:
            folder = dead_letter_folder(self.destination.workspace)
            if folder.exists() and not folder.is_dir():
                move_damaged(folder)
            folder.mkdir(mode=0o700, exist_ok=True)
            write_privately(folder / name, b"".join(line + b"\n" for line in lines))

    def _load(self, events: list[Event]) -> None:
        # "repair": the next run reads messages and chats that only events know.
        self.destination.workspace.set_pending("repair", "transform", "publish")
        events.sort(key=lambda event: (event.occurred_at, event.received_at))
        batch = self._merge(events) or self._load_with_dlt(events)
        self.result.deliveries += batch.events.num_rows
        added = sum(key not in batch.stored for key in batch.messages.column("id").to_pylist())
        self.result.messages_new += added
        self.result.messages_changed += batch.messages.num_rows - added
        self.result.impossible_chat_ids += sum(event.has_impossible_chat for event in events)
        self.result.unreadable_message_ids += sum(event.has_unreadable_message for event in events)

    def _build_batch(self, events: list[Event], warehouse: Warehouse) -> _Batch:
        with warehouse.connected():
            rows = to_rows(warehouse.rows_with("messages", "id", list_messages(events)), MESSAGES)
            chat_rows = to_rows(warehouse.rows_with("chats", "id", _list_chats(events)), CHATS)
        chats = build_chats(chat_rows, events, self.redactor)
        chat_ids = {row["id"] for row in chat_rows} | chats.keys()
        messages = apply_events(rows, events, Scope(chat_ids, self.start_ms, self.redactor))
        self.redactor.save_vault()
        return _Batch(
            build_arrow_table(WEBHOOK_EVENTS, [(event, event.received_at) for event in events]),
            build_arrow_rows(CHATS, select_changed_chats(chat_rows, chats, messages)),
            build_arrow_rows(MESSAGES, messages),
            {row["id"] for row in rows},
        )

    def _merge(self, events: list[Event]) -> _Batch | None:
        """Load events without dlt, which takes half a second to start. Null if dlt is needed.

        That is so if a table has to be created or changed, or refuses a row.
        """
        if not isinstance(self.destination, DuckDBFile):
            return None
        with suppress(*DLT_IS_NEEDED), self.destination.open_writer() as connection:
            batch = self._build_batch(events, Warehouse(lambda: nullcontext(SqlClient(connection))))
            merge_rows(connection, PIPELINE, batch.list_parts(self.strategy))
            return batch
        return None

    def _load_with_dlt(self, events: list[Event]) -> _Batch:
        pipeline = build_fresh_pipeline(self.destination, PIPELINE)
        batch = self._build_batch(events, Warehouse(pipeline.sql_client))
        file_format = self.destination.file_format
        try:
            pipeline.run(_build_resource(batch, self.strategy), loader_file_format=file_format)
        except pipeline_exceptions.PipelineStepFailed as failure:
            if not is_data_error(failure):
                raise
            # Load the segments again, without the rows that the destination refuses.
            pipeline.abort_packages()
            screen = Screen(self.destination)
            refused = screen(WEBHOOK_EVENTS.name, batch.events)
            batch = replace(
                batch,
                events=_drop_rows(batch.events, refused),
                chats=_drop_rows(batch.chats, screen("chats", batch.chats)),
                messages=_drop_rows(batch.messages, screen("messages", batch.messages)),
            )
            lines = [bytes(event.payload) for event, is_refused in zip(events, refused, strict=True) if is_refused]
            self.result.malformed += len(lines)
            if not self.redactor.policy.redacts:
                self._write_dead_letters(f"refused.{time.time_ns()}.jsonl", lines)
            pipeline.run(_build_resource(batch, self.strategy), loader_file_format=file_format)
        return batch


@dataclass(frozen=True)
class _Batch:
    """Rows of `webhook_events`, new or changed rows of `chats` and `messages`, and the ids of stored messages."""

    events: pa.Table
    chats: pa.Table
    messages: pa.Table
    stored: set[str]

    def list_parts(self, strategy: Strategy) -> list[tuple[Table, pa.Table, Strategy]]:
        """Return the tables to load with their rows, and how: events by a strategy."""
        updates = [(table, rows) for table, rows in ((CHATS, self.chats), (MESSAGES, self.messages)) if rows.num_rows]
        return [(WEBHOOK_EVENTS, self.events, strategy), *((*update, "delete-insert") for update in updates)]


def _drop_rows(rows: pa.Table, refused: list[bool]) -> pa.Table:
    return filter_rows(rows, [not is_refused for is_refused in refused])


def _list_chats(events: Iterable[Event]) -> list[str]:
    """Return the chats of events that may add a message."""
    return sorted({event.chat_id for event in events if event.chat_id is not None and event.is_about_message})


def _build_resource(batch: _Batch, strategy: Strategy) -> Any:
    items = [build_item(*part) for part in batch.list_parts(strategy)]
    return dlt.resource(items, name="webhook_events_and_messages")
