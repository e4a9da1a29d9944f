"""Who is behind a pseudonym: for those who must look it up.

Off by default. What is in it is what the policy keeps out of everything else, so it is a file of its own, which can lie
where the warehouse does not.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgbubbles.handles import normalize_handle
from msgbubbles_sync.errors import UsageError

MAX_KNOWN = 200_000


class Vault:
    """A SQLite file of pseudonyms and handles, for its owner only. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Raises `UsageError` where there can be no such file."""
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._new: dict[str, str] = {}
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            with self._opened() as database:
                database.execute("CREATE TABLE IF NOT EXISTS people (pseudonym TEXT PRIMARY KEY, handle TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"{path}: the vault cannot be used ({type(error).__name__}); mend vault in dlt_config/config.toml"
            ) from None

    def add(self, pseudonym: str, handle: str) -> None:
        """Somebody was replaced. On disk after `keep`."""
        if pseudonym in self._known:
            return
        with self._lock:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known.add(pseudonym)
            self._new[pseudonym] = normalize_handle(handle)

    def save(self) -> None:
        """Put on disk who was noted: before the rows in which they are replaced are."""
        if not self._new:
            return
        with self._lock, self._opened() as database:
            database.executemany("INSERT OR IGNORE INTO people VALUES (?, ?)", self._new.items())
            self._new = {}

    def find_handle(self, pseudonym: str) -> str | None:
        with self._lock, self._opened() as database:
            found = database.execute("SELECT handle FROM people WHERE pseudonym = ?", (pseudonym,)).fetchone()
        return None if found is None else str(found[0])

    def remove(self, is_gone: Callable[[str], bool]) -> int:
        """Take people out by their pseudonyms, so that no byte of them is left. Returns how many there were."""
        with self._lock, self._opened() as database:
            self._known.clear()
            gone = [one for (one,) in database.execute("SELECT pseudonym FROM people").fetchall() if is_gone(one)]
            database.executemany("DELETE FROM people WHERE pseudonym = ?", [(one,) for one in gone])
        return len(gone)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        # No file stays open, and none is left beside it.
        database = sqlite3.connect(self._path, timeout=60)
        try:
            database.execute("PRAGMA secure_delete = ON")
            with database:
                yield database
        finally:
            database.close()
