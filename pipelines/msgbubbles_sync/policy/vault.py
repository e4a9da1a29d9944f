"""Store the handle of each pseudonym in a vault, for those who have to resolve pseudonyms.

The vault is off by default. It holds what the policy keeps out of everything else, so it is a separate file, which can
be stored away from the warehouse.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgbubbles.handles import normalize_handle
from msgbubbles_sync.errors import InputFileError
from msgbubbles_sync.files import create_privately

MAX_CACHED = 200_000


class Vault:
    """A SQLite file of pseudonyms and handles, readable by its owner only. Thread-safe and process-safe."""

    def __init__(self, path: Path) -> None:
        """Create the file if it is missing. Raises `InputFileError` if it cannot be used."""
        self._lock = threading.Lock()
        self._saved: set[str] = set()
        self._new: dict[str, str] = {}
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_privately(path)
            with self._open() as database:
                database.execute("CREATE TABLE IF NOT EXISTS people (pseudonym TEXT PRIMARY KEY, handle TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise InputFileError(
                f"{path}: the vault cannot be used ({type(error).__name__}). Give the user of this job access, restore "
                "it from a backup, move it away, or fix vault in dlt_config/config.toml. People whose rows are loaded "
                "meanwhile are added when these are read again: chats within a day, all of them by verify --full"
            ) from None

    def add(self, pseudonym: str, handle: str) -> None:
        """Record the handle of a pseudonym. It is on disk after `save`."""
        if pseudonym in self._saved:
            return
        with self._lock:
            if len(self._saved) >= MAX_CACHED:
                self._saved.clear()
            self._saved.add(pseudonym)
            self._new[pseudonym] = normalize_handle(handle)

    def save(self) -> None:
        """Write what was added to the disk. Call it before the redacted rows are written."""
        if not self._new:
            return
        with self._lock, self._open() as database:
            database.executemany("INSERT OR IGNORE INTO people VALUES (?, ?)", self._new.items())
            self._new = {}

    def find_handle(self, pseudonym: str) -> str | None:
        with self._lock, self._open() as database:
            row = database.execute("SELECT handle FROM people WHERE pseudonym = ?", (pseudonym,)).fetchone()
        return None if row is None else str(row[0])

    def remove(self, is_gone: Callable[[str], bool]) -> int:
        """Remove people by their pseudonyms, so that no byte of them is left. Returns how many were removed."""
        with self._lock, self._open() as database:
            self._saved.clear()
            gone = [row for row in database.execute("SELECT pseudonym FROM people").fetchall() if is_gone(*row)]
            database.executemany("DELETE FROM people WHERE pseudonym = ?", gone)
        return len(gone)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Opened and closed each time, so that no log file is left next to it.
        database = sqlite3.connect(self._path, timeout=60)
        try:
            database.execute("PRAGMA secure_delete = ON")
            with database:
                yield database
        finally:
            database.close()
