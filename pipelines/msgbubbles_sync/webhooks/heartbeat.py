"""A sign of life of the receiver, in a file: whether one runs, since when without a break, and when the last event
came.
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from msgbubbles_sync.files import write_privately

# Without a sign of life for so long, the receiver is down; after such a break, what was sent meanwhile may be lost.
MAX_SILENCE = timedelta(seconds=60)


class Beat(msgspec.Struct, frozen=True):
    """What the file says. `uninterrupted_since` survives restarts that take less than `MAX_SILENCE`."""

    pid: int
    beat_at: datetime
    uninterrupted_since: datetime
    last_event_at: datetime | None = None

    def is_alive(self, now: datetime) -> bool:
        return now - self.beat_at <= MAX_SILENCE


class Heartbeat:
    """Writes it."""

    def __init__(self, folder: Path) -> None:
        now, before = datetime.now(UTC), read_last_beat(folder)
        self.last_event_at = before.last_event_at if before else None
        self._since = before.uninterrupted_since if before and before.is_alive(now) else now
        self._path = path_of(folder)
        self._one_at_a_time = threading.Lock()

    def saw(self, at: datetime) -> None:
        """An event came."""
        self.last_event_at = at

    def beat(self) -> None:
        """Write it. Raises `OSError`; the last sign of life then stays as it is."""
        with self._one_at_a_time:
            beat = Beat(os.getpid(), datetime.now(UTC), self._since, self.last_event_at)
            write_privately(self._path, msgspec.json.encode(beat))


def path_of(folder: Path) -> Path:
    return folder / "receiver.json"


def read_last_beat(folder: Path) -> Beat | None:
    """The last sign of life; null where no receiver ever ran."""
    try:
        return msgspec.json.decode(path_of(folder).read_bytes(), type=Beat)
    except (OSError, msgspec.DecodeError):
        return None
