"""Check whether events arrive, for `check`, and for the sync, which then refreshes messages less often."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
from msgspec import structs

from msgbubbles.settings import SourceSettings
from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.text import format_count, format_span
from msgbubbles_sync.workspace import Workspace

from .heartbeat import Beat, find_stopped, read_last_beat
from .load import count_dead_letters, dead_letter_folder
from .spool import list_segments, list_unreadable, spool_folder, stat_segments, webhooks_folder

# A message that is newer than the last event by more than this had no event, even with retries.
MAX_DELAY = timedelta(minutes=15)
# After a break, the usual refresh needs up to an hour to catch up.
UNINTERRUPTED = timedelta(hours=1)
# After this time in the spool, files are probably not loaded at all.
MAX_WAIT_SECONDS = 3600.0
NEWEST = """
SELECT max(cursor_at) FILTER (WHERE direction = 'inbound'), max(cursor_at) FILTER (WHERE direction = 'outbound')
FROM msgbubbles.messages"""
LAST = """
SELECT max(received_at) FILTER (WHERE event_type = 'message.received'),
    max(received_at) FILTER (
        WHERE event_type IN ('message.sent', 'message.delivered', 'message.read', 'message.failed')
    )
FROM msgbubbles.webhook_events"""


@dataclass(frozen=True)
class EventTimes:
    """Times of the newest message and of the last event about one, each for inbound and outbound messages."""

    newest: tuple[datetime | None, datetime | None] = (None, None)
    last: tuple[datetime | None, datetime | None] = (None, None)

    @property
    def missing_directions(self) -> list[str]:
        """Directions with messages whose events did not arrive."""
        names = ("inbound", "outbound")
        return [
            name
            for name, newest, last in zip(names, self.newest, self.last, strict=True)
            if newest is not None and (last is None or newest - last > MAX_DELAY)
        ]


@dataclass(frozen=True)
class ReceiverState:
    """The receivers of a workspace, by their heartbeats, and its files. `beat` is null if none ever ran."""

    beat: Beat | None
    waiting_files: int
    dead_letters: int
    stopped: list[str]

    @classmethod
    def read(cls, workspace: Workspace) -> ReceiverState:
        folder = webhooks_folder(workspace)
        beat, waiting = read_last_beat(folder), len(list_segments(spool_folder(workspace)))
        stopped = [path.name for path in find_stopped(folder, datetime.now(UTC))]
        return cls(beat, waiting, count_dead_letters(workspace), stopped)

    def as_dict(self) -> dict[str, object]:
        files = {"waiting_files": self.waiting_files, "dead_letters": self.dead_letters}
        if self.beat is None:
            return {"running": False, **files}
        return {
            "running": not self.stopped,
            "stopped": self.stopped,
            "since": _format_time(self.beat.uninterrupted_since),
            "last_event_at": _format_time(self.beat.last_event_at),
            "refused": self.beat.refused,
            "last_refused_at": _format_time(self.beat.last_refused_at),
            **files,
        }

    def __str__(self) -> str:
        files = f"{format_count(self.waiting_files, 'file')} waiting, {format_count(self.dead_letters, 'dead letter')}"
        if self.beat is None:
            return f"Receiver: never ran on this workspace; {files}."
        beat = self.beat
        names = ", ".join(self.stopped)
        state = f"not running since {_format_time(beat.beat_at)} ({names})" if self.stopped else "running"
        event = f"last event {_format_time(beat.last_event_at)}" if beat.last_event_at else "no event yet"
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(beat.refused.items()))
        since = f"since {_format_time(beat.uninterrupted_since)}"
        refused = f"refused {since}: {counts}, last {_format_time(beat.last_refused_at)}" if counts else "none refused"
        return f"Receiver: {state}; {event}; {refused}; {files}."


def read_event_times(destination: Destination) -> EventTimes:
    """Read the times from the published tables, where events are never older than messages."""
    with suppress(duckdb.Error, UsageError), destination.open_query() as fetch:
        if fetch("SELECT 1 FROM msgbubbles.webhook_events LIMIT 1"):
            newest, last = fetch(NEWEST), fetch(LAST)
            if newest and last:
                return EventTimes(newest[0], last[0])
    return EventTimes()


def are_reliable(context: Context, now: datetime | None = None) -> bool:
    """Return whether events can be relied on: the receiver ran without a break, and no message lacks its event."""
    now = now or datetime.now(UTC)
    beat = read_last_beat(webhooks_folder(context.workspace))
    if beat is None or not beat.is_alive(now) or now - beat.uninterrupted_since < UNINTERRUPTED:
        return False
    times = read_event_times(context.destination)
    return any(times.last) and not times.missing_directions


def check(context: Context, now: datetime | None = None) -> Iterator[CheckResult]:
    """Check the receiver, its events and the spool; nothing if webhooks were never used."""
    workspace, now = context.workspace, now or datetime.now(UTC)
    beat = read_last_beat(webhooks_folder(workspace))
    if beat is not None:
        yield _check_receiver(beat, now, find_stopped(webhooks_folder(workspace), now))
        yield _check_events(beat, read_event_times(context.destination), now)
        yield _check_spool(workspace, now)
    malformed = count_dead_letters(workspace)
    if malformed:
        what = f"{format_count(malformed, 'line')} without an event in {dead_letter_folder(workspace)}"
        yield CheckResult("webhook lines", "failed", what, "inspect the files, then remove them")


def _check_spool(workspace: Workspace, now: datetime) -> CheckResult:
    waiting, unreadable = stat_segments(spool_folder(workspace)), list_unreadable(spool_folder(workspace))
    if unreadable:
        what = f"{format_count(len(unreadable), 'file')} cannot be read: {', '.join(map(str, unreadable[:3]))}"
        return CheckResult("webhook spool", "failed", what, "give the user of the job access, or move them away")
    age_seconds = now.timestamp() - min((segment.st_mtime for segment in waiting), default=now.timestamp())
    if age_seconds > MAX_WAIT_SECONDS:
        what = f"{format_count(len(waiting), 'file')} waiting, the oldest for {format_span(age_seconds)}"
        return CheckResult("webhook spool", "failed", what, "run the sync, or webhooks.py load, on a schedule")
    return CheckResult("webhook spool", "ok", f"{format_count(len(waiting), 'file')} waiting to be loaded")


def _check_receiver(beat: Beat, now: datetime, stopped: list[Path]) -> CheckResult:
    if stopped:
        ago, names = format_span((now - beat.beat_at).total_seconds()), ", ".join(path.name for path in stopped)
        what = f"{names} is not running; the last heartbeat was {ago} ago"
        fix = f"run webhooks.py serve as a service that is restarted; if it is no longer needed, remove {stopped[0]}"
        return CheckResult("webhook receiver", "failed", what, fix)
    span = format_span((now - beat.uninterrupted_since).total_seconds())
    return CheckResult("webhook receiver", "ok", f"running without a break for {span}")


def _check_events(beat: Beat, times: EventTimes, now: datetime) -> CheckResult:
    last = beat.last_event_at
    age = "none arrived yet" if last is None else f"the last arrived {format_span((now - last).total_seconds())} ago"
    # Includes events that are not loaded yet.
    newest = max((at for at in times.newest if at is not None), default=None)
    if times.missing_directions and (last is None or (newest is not None and newest - last > MAX_DELAY)):
        what = f"{age}, but there are newer messages"
        fix = "check webhooks.py list, the URL, and the receiver's log for refused deliveries"
        return CheckResult("webhook events", "failed", what, fix)
    if times.missing_directions:
        what = f"{age}; none about {' and '.join(times.missing_directions)} messages, although there are some"
        return CheckResult("webhook events", "info", what)
    return CheckResult("webhook events", "ok", age)


def _format_time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")


def with_refresh(context: Context) -> SourceSettings:
    """Return the settings of the source, with `refresh_messages` of `[webhooks]` while events are reliable."""
    source, rules = context.settings.source, context.settings.webhooks.refresh_messages
    return source if rules is None or not are_reliable(context) else structs.replace(source, refresh_messages=rules)
