"""Whether events arrive: what `check` reports, and when the sync may rely on them to refresh messages less often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
from msgspec import structs

from msgbubbles.settings import SourceSettings
from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.workspace import Workspace

from .heartbeat import Beat, read_last_beat
from .load import count_dead_letters, dead_letter_folder
from .spool import list_segments, spool_folder, webhooks_folder

# A message that is so much newer than the last event of its kind should have brought one, retries and all.
MAX_DELAY = timedelta(minutes=15)
# What a break has cost, the usual refresh mends within the hour.
UNINTERRUPTED = timedelta(hours=1)
# Nobody loads what is in the spool for longer.
MAX_WAIT = timedelta(hours=1)
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
class Times:
    """By direction of the messages (inbound, outbound): the newest message, and the last event of one; null where there
    is none.
    """

    newest: tuple[datetime | None, datetime | None] = (None, None)
    last: tuple[datetime | None, datetime | None] = (None, None)

    @property
    def behind(self) -> list[str]:
        """The directions whose events did not come although there were messages."""
        names = ("inbound", "outbound")
        return [
            name
            for name, newest, last in zip(names, self.newest, self.last, strict=True)
            if newest is not None and (last is None or newest - last > MAX_DELAY)
        ]


def read_event_times(workspace: Workspace) -> Times:
    """From what readers see: events are loaded before messages are read, so what is there fits together."""
    destination = build_destination(workspace)
    try:
        if not destination.exists():
            return Times()
        with destination.open_reader() as connection:
            newest = connection.execute(NEWEST).fetchone() or (None, None)
            last = connection.execute(LAST).fetchone() or (None, None)
    except (duckdb.Error, UsageError):
        return Times()
    return Times(newest, last)


def are_reliable(workspace: Workspace, now: datetime | None = None) -> bool:
    """Whether the sync may rely on events for what changes: a receiver runs and has run without a break, and in either
    direction no message is there whose event did not come.
    """
    now = now or datetime.now(UTC)
    beat = read_last_beat(webhooks_folder(workspace))
    if beat is None or not beat.is_alive(now) or now - beat.uninterrupted_since < UNINTERRUPTED:
        return False
    times = read_event_times(workspace)
    return any(times.last) and not times.behind


def check(workspace: Workspace, now: datetime | None = None) -> Iterator[CheckResult]:
    """What there is to say, where there is something about webhooks."""
    now = now or datetime.now(UTC)
    beat = read_last_beat(webhooks_folder(workspace))
    if beat is not None:
        yield _receiver(beat, now)
        yield _events(beat, read_event_times(workspace), now)
        yield _spool(workspace, now)
    malformed = count_dead_letters(workspace)
    if malformed:
        what = f"{malformed} lines were no events; they are kept in {dead_letter_folder(workspace)}"
        yield CheckResult("webhook lines", "failed", what, "look at them; remove the files when they are understood")


def _spool(workspace: Workspace, now: datetime) -> CheckResult:
    waiting = list_segments(spool_folder(workspace))
    since = min((_written_at(path) for path in waiting), default=now)
    if now - since > MAX_WAIT:
        what = f"{len(waiting)} files wait, the first for {_ago(now - since)}"
        return CheckResult("webhook spool", "failed", what, "run the sync, or webhooks.py load, on a schedule")
    return CheckResult("webhook spool", "ok", f"{len(waiting)} files wait to be loaded")


def _receiver(beat: Beat, now: datetime) -> CheckResult:
    if not beat.is_alive(now):
        what = f"none runs; the last was here {_ago(now - beat.beat_at)} ago"
        return CheckResult("webhook receiver", "failed", what, "start webhooks.py serve, and see that it stays")
    return CheckResult("webhook receiver", "ok", f"runs without a break for {_ago(now - beat.uninterrupted_since)}")


def _events(beat: Beat, times: Times, now: datetime) -> CheckResult:
    last = beat.last_event_at
    said = "none came yet" if last is None else f"the last came {_ago(now - last)} ago"
    # What came since the last load counts too.
    newest = max((at for at in times.newest if at is not None), default=None)
    if times.behind and (last is None or (newest is not None and newest - last > MAX_DELAY)):
        what = f"{said}, and there are newer messages"
        fix = "see webhooks.py list, and whether the URL still leads to the receiver; its log says what it refuses"
        return CheckResult("webhook events", "failed", what, fix)
    if times.behind:
        what = f"{said}; none of {' and '.join(times.behind)} messages, although there are some"
        return CheckResult("webhook events", "info", what)
    return CheckResult("webhook events", "ok", said)


def _written_at(path: Any) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return datetime.now(UTC)


def _ago(span: timedelta) -> str:
    minutes = max(span, timedelta(0)) / timedelta(minutes=1)
    if minutes < 2:
        return f"{minutes * 60:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"


def with_refresh(workspace: Workspace, settings: Settings) -> SourceSettings:
    """Return the source's settings, with `refresh_messages` of `[webhooks]` while events are reliable."""
    slower = settings.webhooks.refresh_messages
    if slower is None:
        return settings.source
    return structs.replace(settings.source, refresh_messages=slower) if are_reliable(workspace) else settings.source
