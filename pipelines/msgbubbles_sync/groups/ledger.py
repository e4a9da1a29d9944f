"""What was asked of the API for each group, and what came of it: written before the request, and again after it.

A SQLite file in the warehouse's own folder, on disk before a request is sent (`synchronous = FULL`). It is the truth on
which key stands for which group; the warehouse gets a copy of it (`landing`), from which a lost file is restored.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from .model import Kind, Operation

Outcome = Literal["succeeded", "failed", "unknown"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS operations (
    number INTEGER PRIMARY KEY, operation_id TEXT NOT NULL UNIQUE, plan_id TEXT NOT NULL, key TEXT,
    operation TEXT NOT NULL, chat_id TEXT, from_handle TEXT, handles TEXT NOT NULL, title TEXT, message TEXT,
    idempotency_key TEXT, requested_at TEXT NOT NULL, finished_at TEXT, happened_at TEXT, outcome TEXT,
    http_status INTEGER, error_code TEXT, error_message TEXT, request_id TEXT,
    version INTEGER NOT NULL DEFAULT 1, landed_version INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS operations_by_key ON operations (key, number);
CREATE TABLE IF NOT EXISTS sightings (
    key TEXT PRIMARY KEY, chat_id TEXT NOT NULL, from_handle TEXT, title TEXT, handles TEXT, is_gone INTEGER NOT NULL,
    seen_at TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1, landed_version INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS renderings (
    chat_id TEXT NOT NULL, field TEXT NOT NULL, shown TEXT NOT NULL, asked TEXT NOT NULL,
    PRIMARY KEY (chat_id, field, shown));
"""
OPERATION_COLUMNS = (
    "operation_id", "plan_id", "key", "operation", "chat_id", "from_handle", "handles", "title", "message",
    "idempotency_key", "requested_at", "finished_at", "happened_at", "outcome", "http_status", "error_code",
    "error_message", "request_id",
)  # fmt: skip
OBSERVATION_COLUMNS = ("key", "chat_id", "from_handle", "title", "handles", "is_gone", "seen_at")


@dataclass(frozen=True)
class Entry:
    """An operation that was begun. `outcome` is null while there is no verdict, `unknown` where the tries ended without
    one. `happened_at` is our best knowledge of when the network did it.
    """

    operation_id: str
    plan_id: str
    key: str | None
    operation: Kind
    chat_id: str | None
    from_handle: str | None
    handles: tuple[str, ...]
    title: str | None
    message: str | None
    idempotency_key: str | None
    requested_at: datetime
    finished_at: datetime | None = None
    happened_at: datetime | None = None
    outcome: Outcome | None = None
    http_status: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class OperationResult:
    """What came of an operation. `error_message` is the API's own where it sent one: it may quote handles, so it goes
    into the ledger and into no log.
    """

    outcome: Outcome
    chat_id: str | None = None
    happened_at: datetime | None = None
    http_status: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Observation:
    """A group as `GET /chats/:id` showed it last. `handles` are its people without our number, null where the API does
    not show them; `is_gone` is the API's 404.
    """

    key: str
    chat_id: str
    from_handle: str | None
    title: str | None
    handles: tuple[str, ...] | None
    is_gone: bool
    seen_at: datetime


@dataclass(frozen=True)
class Rendering:
    """How the network shows what it was asked for in a group: a title, or a handle."""

    chat_id: str
    field: Literal["title", "handle"]
    shown: str
    asked: str


class Ledger:
    """The file. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._lock = threading.RLock()
        self._database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(SCHEMA)

    @classmethod
    def of(cls, folder: Path) -> Ledger:
        """The ledger of the warehouse whose own files are in `folder`."""
        return cls(folder / "groups.sqlite")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    # -- operations

    def begin(self, plan_id: str, operation: Operation, chat_id: str | None, idempotency_key: str | None) -> Entry:
        """Write down what is about to be asked. When this returns, it is on disk."""
        entry = Entry(
            operation_id=uuid4().hex,
            plan_id=plan_id,
            key=operation.key,
            operation=operation.kind,
            chat_id=chat_id,
            from_handle=operation.from_handle,
            handles=operation.handles,
            title=operation.title,
            message=operation.message,
            idempotency_key=idempotency_key,
            requested_at=datetime.now(UTC),
        )
        self._insert("operations", OPERATION_COLUMNS, [_row_of(entry)])
        return entry

    def finish(self, entry: Entry, verdict: OperationResult) -> None:
        """Write down the verdict. The message of a creation is forgotten with it: nobody has to repeat it any more."""
        now = datetime.now(UTC)
        happened_at = (verdict.happened_at or now) if verdict.outcome == "succeeded" else None
        self._run(
            "UPDATE operations SET finished_at = ?, happened_at = ?, outcome = ?, chat_id = coalesce(?, chat_id), "
            "http_status = ?, error_code = ?, error_message = ?, request_id = ?, "
            "message = CASE WHEN ? THEN message END, version = version + 1 WHERE operation_id = ?",
            (
                _text(now), _text(happened_at), verdict.outcome, verdict.chat_id, verdict.http_status,
                verdict.error_code, verdict.error_message, verdict.request_id, verdict.outcome == "unknown",
                entry.operation_id,
            ),
        )  # fmt: skip

    def withdraw(self, entry: Entry) -> None:
        """Forget an operation that was begun and of which nothing was sent."""
        self._run("DELETE FROM operations WHERE operation_id = ? AND landed_version = 0", (entry.operation_id,))

    def entries(self, plan_id: str | None = None) -> list[Entry]:
        """All operations in the order in which they were begun, or those of one plan."""
        where, values = ("plan_id = ?", (plan_id,)) if plan_id else ("1", ())
        rows = self._all(f"SELECT * FROM operations WHERE {where} ORDER BY number", values)
        return [_entry_of(row) for row in rows]

    def unresolved(self) -> list[Entry]:
        """The operations without a verdict, in the order in which they were begun."""
        rows = self._all("SELECT * FROM operations WHERE outcome IS NULL OR outcome = 'unknown' ORDER BY number")
        return [_entry_of(row) for row in rows]

    def last_title(self, key: str | None) -> str | None:
        """The title that the network last agreed to give to the group of a key; null where it was never asked."""
        rows = self._all(
            "SELECT title FROM operations WHERE key = ? AND outcome = 'succeeded' AND title IS NOT NULL "
            "ORDER BY number DESC LIMIT 1",
            (key,),
        )
        return rows[0]["title"] if rows else None

    # -- sightings

    def record_observation(self, observation: Observation) -> None:
        """Keep how a group was seen; of a key, only the last observation is kept."""
        columns = ", ".join(OBSERVATION_COLUMNS)
        changes = ", ".join(f"{name} = excluded.{name}" for name in OBSERVATION_COLUMNS)
        self._run(
            f"INSERT INTO sightings ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?) "
            f"ON CONFLICT (key) DO UPDATE SET {changes}, version = version + 1",
            (
                observation.key, observation.chat_id, observation.from_handle, observation.title,
                _json(observation.handles), observation.is_gone, _text(observation.seen_at),
            ),
        )  # fmt: skip

    def observations(self) -> list[Observation]:
        return [_sighting_of(row) for row in self._all("SELECT * FROM sightings ORDER BY key")]

    # -- what the network makes of what it is asked for

    def remember(self, rendering: Rendering) -> None:
        """Keep how the network shows what it was asked for; what was asked for last counts."""
        self._run(
            "INSERT OR REPLACE INTO renderings (chat_id, field, shown, asked) VALUES (?, ?, ?, ?)",
            (rendering.chat_id, rendering.field, rendering.shown, rendering.asked),
        )

    def renderings(self, chat_id: str | None = None) -> list[Rendering]:
        """What is remembered of all groups, or of one."""
        where, values = ("chat_id = ?", (chat_id,)) if chat_id else ("1", ())
        rows = self._all(f"SELECT chat_id, field, shown, asked FROM renderings WHERE {where}", values)
        return [Rendering(*row) for row in rows]

    # -- the copy in the warehouse

    def is_new(self) -> bool:
        """Whether nothing was ever written here."""
        return not self._all("SELECT 1 FROM operations UNION ALL SELECT 1 FROM sightings LIMIT 1")

    def restore(self, entries: Iterable[Entry], sightings: Iterable[Observation]) -> None:
        """Fill a new ledger from its copy in the warehouse."""
        with self._transaction():
            self._insert("operations", OPERATION_COLUMNS, [_row_of(entry) for entry in entries])
            for observation in sightings:
                self.record_observation(observation)
            self._run("UPDATE operations SET landed_version = version")
            self._run("UPDATE sightings SET landed_version = version")

    def not_landed(self) -> tuple[list[tuple[Entry, int]], list[tuple[Observation, int]]]:
        """What the warehouse does not have as it is here, each with its version."""
        changed = "SELECT * FROM {} WHERE landed_version < version ORDER BY rowid"
        operations = [(_entry_of(row), int(row["version"])) for row in self._all(changed.format("operations"))]
        sightings = [(_sighting_of(row), int(row["version"])) for row in self._all(changed.format("sightings"))]
        return operations, sightings

    def set_landed(self, entries: Iterable[tuple[Entry, int]], sightings: Iterable[tuple[Observation, int]]) -> None:
        """Note which versions the warehouse has now; a row that has changed meanwhile lands again."""
        with self._transaction():
            for entry, version in entries:
                self._run(
                    "UPDATE operations SET landed_version = ? WHERE operation_id = ?", (version, entry.operation_id)
                )
            for observation, version in sightings:
                self._run("UPDATE sightings SET landed_version = ? WHERE key = ?", (version, observation.key))

    # -- erasure

    def remove_people(self, is_erased: Callable[[str], bool], without_erased: Callable[[str], str]) -> int:
        """Take people out of all that is written down, so that no byte of it is left. Returns how many rows changed."""
        changed = 0
        with self._transaction():
            for one in self.renderings():
                if any(is_erased(text) or without_erased(text) != text for text in (one.shown, one.asked)):
                    changed += 1
                    self._run(
                        "DELETE FROM renderings WHERE chat_id = ? AND field = ? AND shown = ?",
                        (one.chat_id, one.field, one.shown),
                    )
            for table, key, texts in (
                (
                    "operations", "operation_id",
                    ("key", "chat_id", "from_handle", "title", "message", "error_code", "error_message", "request_id"),
                ),
                ("sightings", "key", ("key", "chat_id", "from_handle", "title")),
            ):  # fmt: skip
                for row in self._all(f"SELECT * FROM {table}"):
                    known = json.loads(row["handles"] or "[]")
                    left = [one for one in known if not is_erased(one)]
                    if known and not left and table == "operations":
                        changed += 1
                        self._run(f"DELETE FROM {table} WHERE {key} = ?", (row[key],))
                        continue
                    now = {name: row[name] and without_erased(row[name]) for name in texts}
                    now |= {"handles": json.dumps(left)} if left != known else {}
                    now = {name: value for name, value in now.items() if value != row[name]}
                    if now:
                        changed += 1
                        changes = ", ".join(f"{name} = ?" for name in now)
                        self._run(f"UPDATE {table} SET {changes} WHERE {key} = ?", (*now.values(), row[key]))
        if changed:
            self._run("VACUUM")
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")
        return changed

    # -- the database

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(sql, values).fetchall()

    def _run(self, sql: str, values: Sequence[Any] = ()) -> None:
        with self._lock:
            self._database.execute(sql, values)

    def _insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        marks = ", ".join("?" * len(columns))
        for row in rows:
            self._run(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", row)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._run("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._run("ROLLBACK")
                raise
            self._run("COMMIT")


def _row_of(entry: Entry) -> list[Any]:
    values = {name: getattr(entry, name) for name in OPERATION_COLUMNS}
    values["handles"] = _json(entry.handles)
    for name in ("requested_at", "finished_at", "happened_at"):
        values[name] = _text(values[name])
    return list(values.values())


def _entry_of(row: sqlite3.Row) -> Entry:
    values = {name: row[name] for name in OPERATION_COLUMNS}
    values["handles"] = tuple(json.loads(row["handles"]))
    for name in ("requested_at", "finished_at", "happened_at"):
        values[name] = _instant(values[name])
    return Entry(**values)


def _sighting_of(row: sqlite3.Row) -> Observation:
    values = {name: row[name] for name in OBSERVATION_COLUMNS}
    values["handles"] = None if row["handles"] is None else tuple(json.loads(row["handles"]))
    return Observation(**values | {"is_gone": bool(row["is_gone"]), "seen_at": datetime.fromisoformat(row["seen_at"])})


def _json(handles: Sequence[str] | None) -> str | None:
    return None if handles is None else json.dumps(handles)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="microseconds")


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
