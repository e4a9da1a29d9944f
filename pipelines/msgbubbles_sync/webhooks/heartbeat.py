"""The heartbeat file of each receiver: whether it runs, since when without a break, its last event, its refusals."""

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

from msgbubbles_sync.files import move_damaged, remove, write_privately

# Without a heartbeat for this long, the receiver counts as down, and events sent meanwhile may be lost.
MAX_SILENCE = timedelta(seconds=60)
# A receiver that was stopped this much earlier than another one was replaced by it.
MAX_AGE = timedelta(days=7)
# Each receiver has a folder `receivers/PORT-MACHINE` with this file, and holds a lock on the folder.
FOLDER, FILE = "receivers", "heartbeat.json"


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
    is_stopped: bool = False

    def is_alive(self, now: datetime) -> bool:
        return now - self.beat_at <= MAX_SILENCE


class Heartbeat:
    """Writes the heartbeat file of one receiver, and goes on from the one that was stopped on its port."""

    def __init__(self, folder: Path, port: int) -> None:
        now = datetime.now(UTC)
        self._folder = folder / FOLDER / f"{port}-{socket.gethostname()}"
        stopped = {
            path: beat for path, beat in _read_beats(folder).items()
            if path.name.startswith(f"{port}-") and not _is_running(path, beat, now)
        }  # fmt: skip
        before = max(stopped.values(), key=lambda beat: beat.beat_at, default=None)
        for path in stopped.keys() - {self._folder}:  # of a container whose name has changed
            with suppress(OSError):
                remove(path)
        self.last_event_at = before.last_event_at if before else None
        alive = before if before and before.is_alive(now) else Beat(os.getpid(), now, now)
        self._since = alive.uninterrupted_since
        self._refused, self._last_refused_at = Counter(alive.refused), alive.last_refused_at
        self._lock: int | None = None
        self._write_lock = threading.Lock()
        self._is_stopped = False
        with suppress(OSError):  # the next heartbeat tries again: deliveries can be stored without
            self._hold_lock()

    def record_refusal(self, reason: str) -> None:
        self._refused[reason] += 1
        self._last_refused_at = datetime.now(UTC)

    def beat(self) -> None:
        """Write the file. Raises `OSError`; the previous content then stays."""
        with self._write_lock:
            self._hold_lock()
            beat = Beat(
                os.getpid(), datetime.now(UTC), self._since, self.last_event_at, dict(self._refused),
                self._last_refused_at, socket.gethostname(), self._is_stopped,
            )  # fmt: skip
            write_privately(self._folder / FILE, msgspec.json.encode(beat))

    def _hold_lock(self) -> None:
        """Lock the folder, unless it is locked. The system releases the lock however the process ends."""
        if self._lock is not None:
            return
        parent = self._folder.parent
        if os.path.lexists(parent) and not parent.is_dir():
            move_damaged(parent)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        """Write the file for the last time, and show that the receiver has stopped. Raises `OSError`."""
        self._is_stopped = True
        self.beat()
        if self._lock is not None:
            os.close(self._lock)


def _is_running(folder: Path, beat: Beat, now: datetime) -> bool:
    """Return whether the receiver of a heartbeat runs. On this machine, its lock shows at once that it has ended."""
    if beat.is_stopped or not beat.is_alive(now):
        return False
    if beat.host != socket.gethostname():
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it holds the lock, or the file system has none
        return True
    finally:
        os.close(descriptor)
    return False


def _read_beats(folder: Path) -> dict[Path, Beat]:
    """Read the last heartbeat of each receiver of a workspace, by the folder of the receiver."""
    beats: dict[Path, Beat] = {}
    for path in folder.glob(f"{FOLDER}/*/{FILE}"):
        with suppress(OSError, msgspec.DecodeError):
            beats[path.parent] = msgspec.json.decode(path.read_bytes(), type=Beat)
    newest = max((beat.beat_at for beat in beats.values()), default=datetime.min.replace(tzinfo=UTC))
    return {path: beat for path, beat in beats.items() if newest - beat.beat_at <= MAX_AGE}


def find_stopped(folder: Path, now: datetime) -> list[Path]:
    """Return the folders of the receivers of a workspace that do not run, the one that stopped first at the front."""
    beats = sorted(_read_beats(folder).items(), key=lambda item: item[1].beat_at)
    return [path for path, beat in beats if not _is_running(path, beat, now)]


def read_last_beat(folder: Path) -> Beat | None:
    """Read the last heartbeats of all receivers of a workspace as one; null if none ever ran.

    It is that of the receiver with the earliest heartbeat and the latest break, with the events and refusals of all.
    """
    beats = _read_beats(folder).values()
    if not beats:
        return None
    return Beat(
        0,
        min(beat.beat_at for beat in beats),
        max(beat.uninterrupted_since for beat in beats),
        max((beat.last_event_at for beat in beats if beat.last_event_at), default=None),
        dict(sum((Counter(beat.refused) for beat in beats), Counter())),
        max((beat.last_refused_at for beat in beats if beat.last_refused_at), default=None),
    )
