"""Deliveries on disk: written and synced by the receiver before it says yes, read and removed by the load.

The spool is a folder of segments, files of JSON lines that only grow. A segment belongs to the receiver that holds its
lock (`flock`, which the system lets go of however a process ends); one that nobody holds is never written again. A
receiver begins a new segment when it starts, and lets go of one after `SEGMENT_SECONDS`, so the load finds events
seconds after they came. A line without its line break was cut off before it was answered.
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

SEGMENT_SECONDS = 2.0
SEGMENT_BYTES = 16 * 1024 * 1024
# Ids of deliveries that are not written a second time; what is forgotten here, the load still finds.
RECENT_EVENTS = 50_000
BATCH_EVENTS = 1000
SUFFIX = ".jsonl"


def webhooks_folder(workspace: Workspace) -> Path:
    """Where a warehouse keeps what is about its webhooks."""
    return workspace.folder / "webhooks"


def spool_folder(workspace: Workspace) -> Path:
    return webhooks_folder(workspace) / "spool"


Outcome = Literal["stored", "duplicate"]


class Delivery(msgspec.Struct, frozen=True):
    """One event, a line of the spool. `body` is as it was sent, to the letter where it was valid UTF-8 and the delivery
    held no other event.
    """

    event_id: str
    received_at: datetime
    body: str


@dataclass
class _Waiting:
    delivery: Delivery
    outcome: Future[Outcome] = field(default_factory=Future)


class SpoolWriter:
    """Writes deliveries from a thread of its own: all that wait are written and synced at once, so that many a second
    cost few syncs.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.failed = False
        self.syncs = 0
        self.folder = folder
        self._recent: dict[str, None] = {}
        self._segment: io.FileIO | None = None
        self._segment_path = folder
        self._segment_until = 0.0
        # Bytes of the segment that were written, synced and answered.
        self._synced_bytes = 0
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def put(self, delivery: Delivery) -> Future[Outcome]:
        """The outcome comes when the delivery is on disk. It raises `OSError` where the disk refuses."""
        waiting = _Waiting(delivery)
        self._waiting.put(waiting)
        return waiting.outcome

    @property
    def is_alive(self) -> bool:
        """Whether deliveries can be stored, as far as the last one tells."""
        return self._thread.is_alive() and not self.failed

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            if batch:
                self._store(batch)
            if self._segment is not None and (is_last or time.monotonic() >= self._segment_until):
                self._let_go()
            if is_last:
                return

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """What waits, and whether it is the last. Comes back without anything when a segment has had its time."""
        seconds = None if self._segment is None else max(self._segment_until - time.monotonic(), 0.0)
        batch: list[_Waiting] = []
        try:
            one = self._waiting.get(timeout=seconds)
            while one is not None:
                batch.append(one)
                if len(batch) >= BATCH_EVENTS:
                    return batch, False
                one = self._waiting.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _store(self, batch: list[_Waiting]) -> None:
        new: dict[str, Delivery] = {}
        outcomes: list[Outcome] = []
        for waiting in batch:
            event_id = waiting.delivery.event_id
            is_known = event_id in self._recent or event_id in new
            outcomes.append("duplicate" if is_known else "stored")
            if not is_known:
                new[event_id] = waiting.delivery
        try:
            if new:
                self._append(b"".join(msgspec.json.encode(one) + b"\n" for one in new.values()))
        except OSError as error:
            # Half a line may be there, and behind a sync that failed nobody knows what is: nothing is written after it.
            self._drop_unsynced()
            self._let_go()
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
        left = memoryview(lines)
        while left:  # where a disk is nearly full, less is written than was asked for
            left = left[self._segment.write(left) :]
        os.fsync(self._segment.fileno())
        self.syncs += 1
        self._synced_bytes = self._segment.tell()
        if self._synced_bytes >= SEGMENT_BYTES:
            self._let_go()

    def _drop_unsynced(self) -> None:
        """Take out of the segment what was not answered. One that holds nothing else goes: a disk that refuses for
        long would otherwise fill with empty files.
        """
        if self._segment is None:
            return
        with suppress(OSError):
            if self._synced_bytes:
                self._segment.truncate(self._synced_bytes)
            else:
                self._segment_path.unlink()

    def _let_go(self) -> None:
        if self._segment is not None:
            with suppress(OSError):  # what was answered is synced
                self._segment.close()
            self._segment = None


def _new_segment(folder: Path) -> tuple[io.FileIO, Path]:
    """A segment that is ours before anybody can see it: one that nobody holds would be taken for a finished one."""
    path = folder / f"{time.time_ns()}-{os.getpid()}{SUFFIX}"
    hidden = path.with_suffix(".new")
    # Not buffered: what is written is written, or raises.
    segment = io.FileIO(hidden, "a")
    try:
        fcntl.flock(segment, fcntl.LOCK_EX)
        hidden.replace(path)
        sync_to_disk(folder)
    except OSError:
        segment.close()
        for one in (hidden, path):
            with suppress(OSError):
                one.unlink(missing_ok=True)
        raise
    return segment, path


@dataclass(frozen=True)
class Segment:
    """A segment that nobody writes any more. `malformed` are lines that are no deliveries, as they are."""

    path: Path
    deliveries: list[Delivery]
    malformed: list[bytes]


def list_segments(folder: Path) -> list[Path]:
    """All segments, oldest first, those too that are being written."""
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (len(path.name), path.name)) if folder.is_dir() else []


def take_finished(folder: Path) -> Iterator[Segment]:
    """The segments that nobody writes any more, oldest first."""
    for path in list_segments(folder):
        if _is_released(path):
            yield read_segment(path)


def read_segment(path: Path) -> Segment:
    """What is in a segment. What stands behind the last line break was never answered, and is left out."""
    deliveries, malformed = [], []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            deliveries.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            malformed.append(line)
    return Segment(path, deliveries, malformed)


_DECODER = msgspec.json.Decoder(Delivery)


def _is_released(path: Path) -> bool:
    try:
        with path.open("rb") as segment:
            fcntl.flock(segment, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
