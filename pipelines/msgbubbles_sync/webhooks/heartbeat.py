"""The heartbeat file of the receiver: whether it runs, since when without a break, its last event, and its refusals."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from msgbubbles_sync.files import write_privately

# Without a heartbeat for this long, the receiver counts as down, and events sent meanwhile may be lost.
MAX_SILENCE = timedelta(seconds=60)
FILE = "receiver.json"


class Beat(msgspec.Struct, frozen=True):
    """The content of the file. `uninterrupted_since` survives restarts that take less than `MAX_SILENCE`.

    `refused` counts deliveries since then, by the reason. `host` is the machine of the receiver.
    """

    pid: int
    beat_at: datetime
    uninterrupted_since: datetime
    last_event_at: datetime | None = None
    refused: dict[str, int] = {}
    last_refused_at: datetime | None = None
    host: str = ""

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
        # The system releases the lock however the process ends.
        self._folder = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._folder, fcntl.LOCK_SH)
        self._write_lock = threading.Lock()

    def record_refusal(self, reason: str) -> None:
        self._refused[reason] += 1
        self._last_refused_at = datetime.now(UTC)

    def beat(self) -> None:
        """Write the file. Raises `OSError`; the previous content then stays."""
        with self._write_lock:
            now, refused = datetime.now(UTC), dict(self._refused)
            beat = Beat(
                os.getpid(), now, self._since, self.last_event_at, refused, self._last_refused_at, socket.gethostname()
            )
            write_privately(self._path, msgspec.json.encode(beat))

    def close(self) -> None:
        """Write the file for the last time, and show that the receiver has stopped. Raises `OSError`."""
        os.close(self._folder)
        self.beat()


def is_running(folder: Path, beat: Beat, now: datetime) -> bool:
    """Return whether the receiver of a heartbeat runs. On this machine, its lock shows at once that it has ended."""
    if not beat.is_alive(now) or beat.host != socket.gethostname():
        return beat.is_alive(now)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it holds the lock, or the file system has none
        return True
    finally:
        os.close(descriptor)
    return False


def read_last_beat(folder: Path) -> Beat | None:
    """Read the last heartbeat; null if no receiver ever ran."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Beat)
    except (OSError, msgspec.DecodeError):
        return None
