"""The spool's way into the warehouse: `webhook_events`, and the messages that the events have changed.

Imports dlt, so `Workspace.configure_dlt` comes before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dlt
import msgspec
from dlt.pipeline.exceptions import PipelineStepFailed

from msgbubbles.source.arrow import build_arrow_table, build_column_hints, build_item
from msgbubbles.source.compare import filter_rows
from msgbubbles.source.stored import Warehouse
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.load import build_fresh_pipeline
from msgbubbles_sync.destinations.screen import Screen, is_data_error
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.policy.applied import build_redactor, read_own_numbers
from msgbubbles_sync.tables import WEBHOOK_EVENTS
from msgbubbles_sync.workspace import Workspace

from .events import drop_duplicates, parse_event
from .redact import drop_payload, redact_delivery
from .spool import Segment, list_segments, spool_folder, take_finished, webhooks_folder
from .updates import apply_events, build_messages_table, read_stored_messages

if TYPE_CHECKING:
    from msgbubbles.redact import Redactor

    from .events import Event

PIPELINE = "msgbubbles_webhooks"
EVENTS_AT_ONCE = 20_000
BODIES_AT_ONCE = 64 * 1024 * 1024  # characters


@dataclass
class LoadResult:
    """What a load did. `deliveries` counts what was in the spool, what is in the warehouse already too;
    `messages` were changed by them. `malformed` lines of the spool are in `aside`. Of the deliveries,
    `without_chat` name their chat by what can be no id: they are stored without it.
    """

    deliveries: int = 0
    messages: int = 0
    malformed: int = 0
    without_chat: int = 0
    aside: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "deliveries": self.deliveries,
            "messages_changed": self.messages,
            "malformed": self.malformed,
            "impossible_chat_ids": self.without_chat,
        }

    def __str__(self) -> str:
        said = f"{self.deliveries:,} deliveries; {self.messages:,} messages changed by them."
        if self.malformed:
            said += f" {self.malformed:,} lines are no events: they are kept in {self.aside}."
        if self.without_chat:
            said += f" {self.without_chat:,} name a chat by an impossible id; they are stored without a chat."
        return said


def dead_letter_folder(workspace: Workspace) -> Path:
    """The folder of the lines that are no events."""
    return webhooks_folder(workspace) / "malformed"


def load_events(workspace: Workspace) -> LoadResult:
    """Load what is in the spool, and remove it from there once that is committed. Readers' files and marts are then
    due, and are marked so.

    The caller holds the warehouse's lock. May be repeated, and killed: an event that is there already is left as it
    is, and a message never goes back.
    """
    landed = LoadResult(aside=dead_letter_folder(workspace))
    if not list_segments(spool_folder(workspace)):
        return landed

    redactor = build_redactor(workspace)
    build_destination(workspace).prepare()
    if redactor.needs_own_numbers:
        redactor.add_own_numbers(read_own_numbers(build_destination(workspace)))
    for batch in _batches(take_finished(spool_folder(workspace))):
        read = [(segment.path, *_events(segment, redactor)) for segment in batch]
        for path, _, malformed in read:
            landed.malformed += len(malformed)
            # Nobody knows what is in such a line.
            kept = [] if redactor.policy.redacts else [one for one in malformed if not _is_about_erased(one, redactor)]
            _write_dead_letters(dead_letter_folder(workspace), path.name, kept)
        events = [event for _, some, _ in read for event in some]
        if events:
            _load(workspace, events, landed, redactor.policy.redacts)
        for path, _, _ in read:
            path.unlink()
    return landed


def _batches(found: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Segments of so many events together that they fit into memory and are loaded in one go."""
    batch: list[Segment] = []
    events = size = 0
    for segment in found:
        batch.append(segment)
        events += len(segment.deliveries)
        size += sum(len(one.body) for one in segment.deliveries)
        if events >= EVENTS_AT_ONCE or size >= BODIES_AT_ONCE:
            yield batch
            batch, events, size = [], 0, 0
    if batch:
        yield batch


def _events(segment: Segment, redactor: Redactor) -> tuple[list[Event], list[bytes]]:
    """The events of a segment, as far as they are to land, and the lines that are none."""
    events, malformed = [], list(segment.malformed)
    for delivery in segment.deliveries:
        left = redact_delivery(delivery, redactor)
        event = parse_event(left) if left is not None else None
        if event is not None:
            events.append(drop_payload(event) if redactor.policy.webhook_payload == "drop" else event)
        elif left is not None:
            # As a line of the spool: a body that is no JSON may hold line breaks.
            malformed.append(msgspec.json.encode(left))
    return events, malformed


def _is_about_erased(line: bytes, redactor: Redactor) -> bool:
    return redactor.mentions_erased(line.decode("utf-8", "replace"))


def _write_dead_letters(folder: Path, name: str, lines: list[bytes]) -> None:
    """Write the lines into a file of their segment's name: a load that is repeated writes the same once more."""
    if lines:
        folder.mkdir(mode=0o700, exist_ok=True)
        write_privately(folder / name, b"".join(line + b"\n" for line in lines))


def count_dead_letters(workspace: Workspace) -> int:
    """How many lines were ever kept aside, and are still there."""
    folder = dead_letter_folder(workspace)
    files = folder.glob("*.jsonl") if folder.is_dir() else ()
    return sum(path.read_bytes().count(b"\n") for path in files)


def _load(workspace: Workspace, events: list[Event], landed: LoadResult, redacts: bool) -> None:
    events = drop_duplicates(events)
    pipeline = build_fresh_pipeline(workspace, PIPELINE)
    # Where events tell of messages and chats that are not there, the next run reads them.
    workspace.set_pending("repair", "transform", "publish")
    in_order = sorted(events, key=lambda event: (event.occurred_at, event.received_at))
    warehouse = Warehouse(pipeline)
    messages = apply_events(read_stored_messages(warehouse, in_order), in_order)

    destination = build_destination(workspace)
    rows = build_arrow_table(WEBHOOK_EVENTS, [(event, event.received_at) for event in in_order])
    changed = build_messages_table(messages)

    def load() -> None:
        def items() -> Iterator[Any]:
            hints = dlt.mark.make_hints(
                table_name=WEBHOOK_EVENTS.name,
                primary_key=list(WEBHOOK_EVENTS.key),
                # What came first stays, however often it is delivered or loaded.
                write_disposition={"disposition": "merge", "strategy": "insert-only"},
                columns=build_column_hints(WEBHOOK_EVENTS),
            )
            yield dlt.mark.with_hints(rows, hints, create_table_variant=True)
            if changed.num_rows:
                yield build_item("messages", changed)

        resource = dlt.resource(items, name="webhook_events_and_messages")
        pipeline.run(resource, loader_file_format=destination.file_format)

    try:
        load()
    except PipelineStepFailed as failure:
        if not is_data_error(failure):
            raise
        # What was loaded is still in the spool. Without what the destination refuses, it is loaded again.
        pipeline.abort_packages()
        screen = Screen(destination)
        refused = screen(WEBHOOK_EVENTS.name, rows)
        rows = filter_rows(rows, [not one for one in refused])
        changed = filter_rows(changed, [not one for one in screen("messages", changed)])
        lines = [bytes(event.payload) for event, is_refused in zip(in_order, refused, strict=True) if is_refused]
        landed.malformed += len(lines)
        _write_dead_letters(dead_letter_folder(workspace), f"refused.{time.time_ns()}.jsonl", [] if redacts else lines)
        load()
    landed.deliveries += rows.num_rows
    landed.messages += changed.num_rows
    landed.without_chat += sum(event.has_impossible_chat for event in in_order)
