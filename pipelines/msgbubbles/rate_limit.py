"""Limit requests per minute, across all processes that use a key.

Requests are recorded in a small SQLite file in the user's state folder, named by a hash of the key. So jobs, notebooks
and other pipelines of one user share it, and it survives a restart. Bursts are allowed: all 120 requests of a minute
may be sent in its first second.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

# The API may count a request later than we sent it. The extra second prevents the 121st request of a full window from
# arriving a moment too early; it costs 1.6% of the rate.
WINDOW_SECONDS = 61.0
# A limit that was reduced after a 429 grows by this factor, each time this many seconds have passed.
GROWTH, GROWTH_SECONDS = 1.1, 600.0
LONGEST_WAIT_SECONDS = 3600.0
ALONE = (
    "the record of requests in %s cannot be written (%s): this process counts its own requests only. Set budget_dir to "
    "a writable folder"
)


class RateLimiter:
    """Admits `requests_per_minute` requests in any 61 seconds.

    `clock` returns seconds since the epoch. It is wall time, because the record outlives the process. If the record
    cannot be written, such as on a full disk, or without a path, this process counts its own requests only.
    """

    def __init__(
        self,
        path: Path | None,
        requests_per_minute: int,
        *,
        window_seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self._window_seconds = window_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._path = path
        if path is None:
            self._database = _open(None)
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._database = _open(path)
        except sqlite3.OperationalError:
            raise
        except (OSError, sqlite3.DatabaseError):
            # A power cut interrupted a write, or it is another user's. Losing the record costs a 429 at worst.
            if path.is_dir():
                path.rename(f"{path}.{time.time_ns()}")
            path.unlink(missing_ok=True)
            self._database = _open(path)

    @classmethod
    def for_key(cls, api_key: str, requests_per_minute: int, folder: str | Path | None = None) -> RateLimiter:
        """Return the rate limiter that all processes of this user share for `api_key`, as far as it can be written."""
        path = find_record(api_key, "budget", folder).with_suffix(".sqlite")
        try:
            return cls(path, requests_per_minute)
        except (OSError, sqlite3.Error) as error:
            logging.getLogger(__name__).warning(ALONE, path, error)
            return cls(None, requests_per_minute)

    def acquire(self) -> float:
        """Count one request and return 0, or count nothing and return how many seconds to wait before the next try."""

        def count(now: float) -> float:
            wait = self._seconds_to_wait(now)
            if wait <= 0:
                self._database.execute("INSERT INTO requests VALUES (?)", (now,))
            return max(wait, 0.0)

        return self._change(count)

    def _change(self, change: Callable[[float], float]) -> float:
        """Change the record. If it cannot be written, go on with one in memory."""
        database = self._database
        try:
            with self._transaction() as now:
                return change(now)
        except sqlite3.OperationalError as error:
            with self._lock:
                if self._database is database:
                    logging.getLogger(__name__).warning(ALONE, self._path, error.__context__ or error)
                    self._database.close()
                    self._database = _open(None)
            with self._transaction() as now:
                return change(now)

    @contextmanager
    def _transaction(self) -> Iterator[float]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                # Read with the lock held: others may write later timestamps while we wait for it.
                yield self._clock()
            finally:
                self._database.execute("COMMIT")

    def _seconds_to_wait(self, now: float) -> float:
        # Times in the future were written before the clock was set back, and would block for as long. They may be from
        # a moment ago, so they count as now.
        self._database.execute("UPDATE requests SET at = ? WHERE at > ?", (now, now + 1))
        self._database.execute("DELETE FROM requests WHERE at <= ?", (now - self._window_seconds,))
        self._database.execute("DELETE FROM closed WHERE until <= ? OR until > ?", (now, now + LONGEST_WAIT_SECONDS))
        (closed_until,) = self._database.execute("SELECT max(until) FROM closed").fetchone()
        if closed_until is not None:
            return float(closed_until - now)
        row = self._database.execute(
            "SELECT at FROM requests ORDER BY at DESC LIMIT 1 OFFSET ?", (self._limit(now) - 1,)
        ).fetchone()
        return 0.0 if row is None else float(row[0] + self._window_seconds - now)

    def _limit(self, now: float) -> int:
        """Return how many requests a window may have: as configured, or fewer after a recent 429."""
        learned, valid_from = self._database.execute("SELECT max(requests), max(at) FROM learned").fetchone()
        if learned is None or valid_from > now + LONGEST_WAIT_SECONDS:
            return self.requests_per_minute
        periods = max(now - valid_from, 0.0) // GROWTH_SECONDS
        return min(self.requests_per_minute, int(learned * GROWTH**periods))

    def note_rate_limited(self, seconds: float) -> None:
        """Close the window after a 429: no process sends a request for `seconds` (an hour at most).

        Then the limit is the number of requests that succeeded in this window: at least a tenth less than before, but
        not less than half, because some of the limit may have been used elsewhere. It grows by a tenth every ten
        minutes.
        """

        def close(now: float) -> float:
            reopens = now + min(seconds, LONGEST_WAIT_SECONDS)
            self._learn(now, reopens)
            self._database.execute("INSERT INTO closed VALUES (?)", (reopens,))
            return reopens

        self._change(close)

    def _learn(self, now: float, reopens: float) -> None:
        (opened,) = self._database.execute("SELECT coalesce(max(at), 0) FROM learned").fetchone()
        if now < opened <= now + LONGEST_WAIT_SECONDS:
            return  # this request was in flight when another one got its 429
        # If the API counts by clock minutes, requests before it opened again belong to another minute.
        since = max(now - self._window_seconds, opened if opened <= now else 0.0)
        before = self._limit(now)
        # At least a tenth less: the requests may belong to two of its minutes.
        limit = max(
            min(int(before * 0.9), self._count_since(since) - 1), before // 2, self.requests_per_minute // 10, 1
        )
        self._database.execute("DELETE FROM learned")
        self._database.execute("INSERT INTO learned VALUES (?, ?)", (limit, reopens))

    @property
    def limit(self) -> int:
        """The number of requests that a window may have now."""
        with self._lock:
            return self._limit(self._clock())

    def count_requests(self) -> int:
        """Count the requests of the current window."""
        with self._lock:
            return self._count_since(self._clock() - self._window_seconds)

    def _count_since(self, since: float) -> int:
        return int(self._database.execute("SELECT count(*) FROM requests WHERE at > ?", (since,)).fetchone()[0])

    def close(self) -> None:
        self._database.close()


def find_record(api_key: str, kind: str, folder: str | Path | None) -> Path:
    """Return the path of a record about a key, in `folder` or this user's state folder. It does not reveal the key."""
    name = f"{kind}-{hashlib.sha256(api_key.encode()).hexdigest()[:16]}"
    return Path(folder or platformdirs.user_state_path("msgbubbles")) / name


def _open(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    database = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None, check_same_thread=False)
    try:
        # Losing the last requests to a power cut costs a 429 at worst; an fsync per request costs more.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE IF NOT EXISTS requests (at REAL NOT NULL)")
        database.execute("CREATE TABLE IF NOT EXISTS closed (until REAL NOT NULL)")
        database.execute("CREATE TABLE IF NOT EXISTS learned (requests REAL NOT NULL, at REAL NOT NULL)")
        database.execute("SELECT count(*) FROM requests, closed, learned").fetchone()
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database
