"""The heartbeat file of the receiver: whether it runs, since when without a break, its last event, and its refusals."""

from __future__ import annotations

import os
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from msgbubbles_sync.files import write_privately

# Without a heartbeat for this long, the receiver counts as down, and events sent meanwhile may be lost.
MAX_SILENCE = timedelta(seconds=60)
FILE = "receiver.json"


class Beat(msgspec.Struct, frozen=True):
    """The content of the file. `uninterrupted_since` survives restarts that take less than `MAX_SILENCE`.

    `refused` counts deliveries since then, by the reason.
    """

    pid: int
    beat_at: datetime
    uninterrupted_since: datetime
    last_event_at: datetime | None = None
    refused: dict[str, int] = {}
    last_refused_at: datetime | None = None

    def is_alive(self, now: datetime) -> bool:
        return now - self.beat_at <= MAX_SILENCE


class Heartbeat:
    """Writes the heartbeat file of one receiver."""

    def __init__(self, folder: Path) -> None:
        now, before = datetime.now(UTC), read_last_beat(folder)
        self.last_event_at = before.last_event_at if before else None
        alive = before if before and before.is_alive(now) else Beat(os.getpid(), now, now)
        self._since = alive.uninterrupted_since
        self._refused, self._last_refused_at = Counter(alive.refused), alive.last_refused_at
        self._path = folder / FILE
        self._write_lock = threading.Lock()

    def record_refusal(self, reason: str) -> None:
        self._refused[reason] += 1
        self._last_refused_at = datetime.now(UTC)

    def beat(self) -> None:
        """Write the file. Raises `OSError`; the previous content then stays."""
        with self._write_lock:
            now, refused = datetime.now(UTC), dict(self._refused)
            beat = Beat(os.getpid(), now, self._since, self.last_event_at, refused, self._last_refused_at)
            write_privately(self._path, msgspec.json.encode(beat))


def read_last_beat(folder: Path) -> Beat | None:
    """Read the last heartbeat; null if no receiver ever ran."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Beat)
    except (OSError, msgspec.DecodeError):
        return None
