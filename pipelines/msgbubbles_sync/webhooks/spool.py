"""The spool: deliveries on disk, synced by the receiver before it answers, then loaded and removed.

It is a folder of segments, append-only files of JSON lines. A segment belongs to the receiver that holds its lock
(`flock`, which the system releases however a process ends); an unlocked one is never written again. A receiver starts a
new segment when it starts and releases it after `SEGMENT_SECONDS`, so that events can be loaded soon after they arrive.
A line without a line break was cut off before its delivery was answered.
"""

from __future__ import annotations

import fcntl
import io
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from msgbubbles_sync.files import sync_to_disk
from msgbubbles_sync.workspace import Workspace

SEGMENT_SECONDS = 0.25
SEGMENT_BYTES = 16 * 1024 * 1024
# Ids that are not written a second time; the load drops older duplicates.
RECENT_EVENTS = 50_000
BATCH_EVENTS = 1000
SUFFIX = ".jsonl"
Outcome = Literal["stored", "duplicate"]


def webhooks_folder(workspace: Workspace) -> Path:
    """Return the folder of the files about webhooks."""
    return workspace.folder / "webhooks"


def spool_folder(workspace: Workspace) -> Path:
    return webhooks_folder(workspace) / "spool"


class Delivery(msgspec.Struct, frozen=True):
    """One event, a line of the spool. `body` is as sent if it was valid UTF-8 and the delivery had no other event."""

    event_id: str
    received_at: datetime
    body: str


@dataclass
class _Waiting:
    delivery: Delivery
    outcome: Future[Outcome] = field(default_factory=Future)


class SpoolWriter:
    """Writes deliveries in a thread. All that wait are written and synced together, which saves syncs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.failed = False
        self.syncs = 0
        self.folder = folder
        self._recent: dict[str, None] = {}
        self._segment: io.FileIO | None = None
        self._segment_path = folder
        self._segment_until = 0.0
        # Bytes of the segment whose deliveries were answered.
        self._synced_bytes = 0
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def put(self, delivery: Delivery) -> Future[Outcome]:
        """Write a delivery. The outcome is set once it is on disk; an `OSError` if that fails."""
        waiting = _Waiting(delivery)
        self._waiting.put(waiting)
        return waiting.outcome

    @property
    def is_alive(self) -> bool:
        """Whether deliveries can be stored, judging by the last one."""
        return self._thread.is_alive() and not self.failed

    def close(self) -> None:
        """Write the waiting deliveries and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            if batch:
                self._store(batch)
            if self._segment is not None and (is_last or time.monotonic() >= self._segment_until):
                self._release()
            if is_last:
                return

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """Return the waiting deliveries and whether they are the last; nothing if it is time to release a segment."""
        seconds = None if self._segment is None else max(self._segment_until - time.monotonic(), 0.0)
        batch: list[_Waiting] = []
        with suppress(queue.Empty):
            waiting = self._waiting.get(timeout=seconds)
            while waiting is not None:
                batch.append(waiting)
                if len(batch) >= BATCH_EVENTS:
                    return batch, False
                waiting = self._waiting.get_nowait()
            return batch, True
        return batch, False

    def _store(self, batch: list[_Waiting]) -> None:
        new: dict[str, Delivery] = {}
        outcomes: list[Outcome] = []
        for waiting in batch:
            event_id = waiting.delivery.event_id
            is_duplicate = event_id in self._recent or event_id in new
            outcomes.append("duplicate" if is_duplicate else "stored")
            if not is_duplicate:
                new[event_id] = waiting.delivery
        try:
            if new:
                self._append(b"".join(msgspec.json.encode(delivery) + b"\n" for delivery in new.values()))
        except OSError as error:
            # The file may end in half a line, or in lines that did not reach the disk: write nothing after them.
            self._drop_unsynced()
            self._release()
            self.failed = True
            for waiting in batch:
                waiting.outcome.set_exception(error)
            return
        self.failed = False
        self._recent |= dict.fromkeys(new)
        while len(self._recent) > RECENT_EVENTS:
            del self._recent[next(iter(self._recent))]
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.outcome.set_result(outcome)

    def _append(self, lines: bytes) -> None:
        if self._segment is None:
            self._segment, self._segment_path = _new_segment(self.folder)
            self._segment_until = time.monotonic() + SEGMENT_SECONDS
            self._synced_bytes = 0
        rest = memoryview(lines)
        while rest:  # on a disk that is nearly full, `write` is partial
            rest = rest[self._segment.write(rest) :]
        os.fsync(self._segment.fileno())
        self.syncs += 1
        self._synced_bytes = self._segment.tell()  # codespell:ignore tell
        if self._synced_bytes >= SEGMENT_BYTES:
            self._release()

    def _drop_unsynced(self) -> None:
        """Cut what was not answered from the segment. Remove a segment that is then empty: they would pile up."""
        if self._segment is None:
            return
        with suppress(OSError):
            if self._synced_bytes:
                self._segment.truncate(self._synced_bytes)
            else:
                self._segment_path.unlink()

    def _release(self) -> None:
        if self._segment is not None:
            with suppress(OSError):  # answered deliveries are already synced
                self._segment.close()
            self._segment = None


def _new_segment(folder: Path) -> tuple[io.FileIO, Path]:
    """Create a segment, locked before it is visible: an unlocked one would be taken for finished."""
    path = folder / f"{time.time_ns()}-{os.getpid()}{SUFFIX}"
    hidden = path.with_suffix(".new")
    # Unbuffered, so that errors are raised by the write.
    segment = io.FileIO(hidden, "a")
    try:
        fcntl.flock(segment, fcntl.LOCK_EX)
        hidden.replace(path)
        sync_to_disk(folder)
    except OSError:
        segment.close()
        for file in (hidden, path):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise
    return segment, path


@dataclass(frozen=True)
class Segment:
    """A finished segment. `malformed` are lines that are not deliveries."""

    path: Path
    deliveries: list[Delivery]
    malformed: list[bytes]


def list_segments(folder: Path) -> list[Path]:
    """Return all segments, oldest first, including those that are being written."""
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (len(path.name), path.name)) if folder.is_dir() else []


def stat_segments(folder: Path) -> list[os.stat_result]:
    """Return the sizes and times of all segments that are still there."""
    segments = []
    for path in list_segments(folder):
        with suppress(FileNotFoundError):
            segments.append(path.stat())
    return segments


def take_finished(folder: Path) -> Iterator[Segment]:
    """Yield the finished segments, oldest first."""
    for path in list_segments(folder):
        if _is_released(path):
            yield read_segment(path)


def has_finished_segment(folder: Path) -> bool:
    return any(map(_is_released, list_segments(folder)))


def list_unreadable(folder: Path) -> list[Path]:
    """Return the segments that this user cannot read, or that are not files; the folder if that is so for it."""
    for path in (folder.parent, folder):
        if os.path.lexists(path) and not (path.is_dir() and os.access(path, os.R_OK | os.X_OK)):
            return [path]
    return [path for path in list_segments(folder) if not (path.is_file() and os.access(path, os.R_OK))]


def read_segment(path: Path) -> Segment:
    """Read a segment, without what follows the last line break: that was never answered."""
    deliveries, malformed = [], []
    decoder = msgspec.json.Decoder(Delivery)
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            deliveries.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            malformed.append(line)
    return Segment(path, deliveries, malformed)


def _is_released(path: Path) -> bool:
    try:
        with path.open("rb") as segment:
            fcntl.flock(segment, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # in use, or unreadable
        return False
    return True
