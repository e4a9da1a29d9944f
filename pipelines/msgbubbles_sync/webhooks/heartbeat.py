"""The heartbeat file of the receiver: whether it runs, since when without a break, and the time of the last event."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from msgbubbles_sync.files import write_privately

# Without a heartbeat for this long, the receiver counts as down, and events sent meanwhile may be lost.
MAX_SILENCE = timedelta(seconds=60)


class Beat(msgspec.Struct, frozen=True):
    """The content of the file. `uninterrupted_since` survives restarts that take less than `MAX_SILENCE`."""

    pid: int
    beat_at: datetime
    uninterrupted_since: datetime
    last_event_at: datetime | None = None

    def is_alive(self, now: datetime) -> bool:
        return now - self.beat_at <= MAX_SILENCE


class Heartbeat:
    """Writes the heartbeat file of one receiver."""

    def __init__(self, folder: Path) -> None:
        now, before = datetime.now(UTC), read_last_beat(folder)
        self.last_event_at = before.last_event_at if before else None
        self._since = before.uninterrupted_since if before and before.is_alive(now) else now
        self._path = _heartbeat_path(folder)
        self._write_lock = threading.Lock()

    def record_event(self, at: datetime) -> None:
        self.last_event_at = at

    def beat(self) -> None:
        """Write the file. Raises `OSError`; the previous content then stays."""
        with self._write_lock:
            beat = Beat(os.getpid(), datetime.now(UTC), self._since, self.last_event_at)
            write_privately(self._path, msgspec.json.encode(beat))


def _heartbeat_path(folder: Path) -> Path:
    return folder / "receiver.json"


def read_last_beat(folder: Path) -> Beat | None:
    """Read the last heartbeat; null if no receiver ever ran."""
    try:
        return msgspec.json.decode(_heartbeat_path(folder).read_bytes(), type=Beat)
    except (OSError, msgspec.DecodeError):
        return None
