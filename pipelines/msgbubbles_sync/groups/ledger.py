"""The ledger: every operation on a group, recorded before its request, and its result afterwards.

It is a SQLite file in the workspace, synced to disk before a request is sent (`synchronous = FULL`), and decides which
group a key stands for. The warehouse has a copy of it (`load`), from which a lost file is restored.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

import msgspec

from msgbubbles.errors import MsgBubblesError
from msgbubbles_sync.files import create_privately

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
CREATE TABLE IF NOT EXISTS sightings ( -- codespell:ignore sightings
    key TEXT PRIMARY KEY, chat_id TEXT NOT NULL, from_handle TEXT, title TEXT, handles TEXT, is_gone INTEGER NOT NULL,
    seen_at TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1, landed_version INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS renderings (
    chat_id TEXT NOT NULL, field TEXT NOT NULL, shown TEXT NOT NULL, asked TEXT NOT NULL,
    PRIMARY KEY (chat_id, field, shown));
CREATE TABLE IF NOT EXISTS loaded_from (workspace TEXT NOT NULL);
"""
LEDGER = "groups.sqlite"
OBSERVATIONS = "sightings"  # codespell:ignore sightings
TIMES = (("operations", "requested_at"), ("operations", "finished_at"), (OBSERVATIONS, "seen_at"))
# The columns that may name a person, with the key of their table.
TEXTS = (
    (
        "operations", "operation_id",
        ("key", "chat_id", "from_handle", "title", "message", "error_code", "error_message", "request_id"),
    ),
    (OBSERVATIONS, "key", ("key", "chat_id", "from_handle", "title")),
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """An operation that was begun.

    `outcome` is null while its request is in flight, and `unknown` after attempts without an answer. `happened_at` is
    the best estimate of when the network did it.
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
    """The result of an operation.

    `error_message` is the API's own, if it sent one. It may quote handles, so it is stored in the ledger and never
    logged.
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
    """A group as `GET /chats/:id` last showed it.

    `handles` are its members without our number, null if the API does not show them. `is_gone`: the API answered 404.
    `chat_id` is empty if the key was forgotten.
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
    """A title or handle that was requested (`asked`), and how the network shows it."""

    chat_id: str
    field: Literal["title", "handle"]
    shown: str
    asked: str


Record = Entry | Observation
Row = TypeVar("Row", Entry, Observation)


class Ledger:
    """The file of the ledger. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        create_privately(path)
        self._path, self._workspace = path, path.parent.name
        self._lock = threading.RLock()
        self._database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except sqlite3.DatabaseError:
            self._database.close()
            raise

    def _prepare(self) -> None:
        self._database.row_factory = sqlite3.Row
        self._database.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {SCHEMA}")
        now = _to_sql(datetime.now(UTC))
        for table, column in TIMES:
            # Written before the clock was set back, it would count as later than what happens from now on.
            query = f"UPDATE {table} SET {column} = ?, version = version + 1 WHERE {column} > ?"
            self._run(query, (now, now))

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """Open the ledger in the folder of a workspace, or create it. Raises `MsgBubblesError` if it is damaged."""
        path = folder / LEDGER
        with _explain_damage(path):
            return cls(path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    # -- operations

    def begin(self, plan_id: str, operation: Operation, chat_id: str | None, idempotency_key: str | None) -> Entry:
        """Record an operation before its request is sent. It is on disk when this returns."""
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
        self._insert("operations", entry)
        return entry

    def finish(self, entry: Entry, result: OperationResult) -> None:
        """Record the result. Unless the outcome is unknown, the message of a creation is deleted: it is sent once."""
        now = datetime.now(UTC)
        happened_at = (result.happened_at or now) if result.outcome == "succeeded" else None
        self._run(
            "UPDATE operations SET finished_at = ?, happened_at = ?, outcome = ?, chat_id = coalesce(?, chat_id), "
            "http_status = ?, error_code = ?, error_message = ?, request_id = ?, "
            "message = CASE WHEN ? THEN message END, version = version + 1 WHERE operation_id = ?",
            (
                _to_sql(now), _to_sql(happened_at), result.outcome, result.chat_id, result.http_status,
                result.error_code, result.error_message, result.request_id, result.outcome == "unknown",
                entry.operation_id,
            ),
        )  # fmt: skip

    def withdraw(self, entry: Entry) -> None:
        """Delete an operation whose request was never sent."""
        self._run("DELETE FROM operations WHERE operation_id = ? AND landed_version = 0", (entry.operation_id,))

    def list_entries(self, plan_id: str | None = None) -> list[Entry]:
        """Return all operations, or those of one plan, in the order in which they were begun."""
        return self._entries("plan_id = ?", plan_id) if plan_id else self._entries("true")

    def list_unresolved(self) -> list[Entry]:
        """Return the operations whose outcome is not known, in the order in which they were begun."""
        return self._entries("outcome IS NULL OR outcome = 'unknown'")

    def _entries(self, condition: str, *values: str) -> list[Entry]:
        rows = self._all(f"SELECT * FROM operations WHERE {condition} ORDER BY number", values)
        return [build_record(Entry, row) for row in rows]

    def find_last_title(self, key: str | None) -> str | None:
        """Return the last title that the network confirmed for a key; null if none was ever requested."""
        rows = self._all(
            "SELECT title FROM operations WHERE key = ? AND outcome = 'succeeded' AND title IS NOT NULL "
            "ORDER BY number DESC LIMIT 1",
            (key,),
        )
        return rows[0]["title"] if rows else None

    # -- observations

    def record_observation(self, observation: Observation) -> None:
        """Store an observation in place of the previous one of its key."""
        changes = ", ".join(f"{field.name} = excluded.{field.name}" for field in fields(Observation))
        self._insert(OBSERVATIONS, observation, f"ON CONFLICT (key) DO UPDATE SET {changes}, version = version + 1")

    def list_observations(self) -> list[Observation]:
        return [build_record(Observation, row) for row in self._all(f"SELECT * FROM {OBSERVATIONS} ORDER BY key")]

    def forget(self, key: str) -> None:
        """Detach a key from its group. An observation without a chat replaces the one in the warehouse."""
        with self._transaction():
            self._run("UPDATE operations SET key = NULL, version = version + 1 WHERE key = ?", (key,))
            self.record_observation(Observation(key, "", None, None, None, True, datetime.now(UTC)))

    # -- renderings

    def remember(self, rendering: Rendering) -> None:
        """Store a rendering; the last request that led to it counts."""
        self._run(
            "INSERT OR REPLACE INTO renderings (chat_id, field, shown, asked) VALUES (?, ?, ?, ?)",
            (rendering.chat_id, rendering.field, rendering.shown, rendering.asked),
        )

    def list_renderings(self, chat_id: str | None = None) -> list[Rendering]:
        """Return the renderings of all groups, or of one."""
        where, values = ("chat_id = ?", (chat_id,)) if chat_id else ("1", ())
        rows = self._all(f"SELECT chat_id, field, shown, asked FROM renderings WHERE {where}", values)
        return [Rendering(**row) for row in rows]

    # -- the copy in the warehouse

    def is_new(self) -> bool:
        """Return whether the ledger is empty."""
        return not self._all(f"SELECT 1 FROM operations UNION ALL SELECT 1 FROM {OBSERVATIONS} LIMIT 1")

    def restore(self, entries: Iterable[Entry], observations: Iterable[Observation]) -> None:
        """Fill an empty ledger from its copy in the warehouse."""
        with self._transaction():
            for entry in entries:
                self._insert("operations", entry)
            for observation in observations:
                self.record_observation(observation)
            for table in ("operations", OBSERVATIONS):
                self._run(f"UPDATE {table} SET landed_version = version")
            self._store_workspace()

    def list_unloaded(self) -> tuple[list[tuple[Entry, int]], list[tuple[Observation, int]]]:
        """Return the rows that the warehouse does not have in this version, each with its version.

        These are all rows after the file was moved here from the workspace of another destination.
        """
        is_ours = [row["workspace"] for row in self._all("SELECT workspace FROM loaded_from")] == [self._workspace]
        changed = f"SELECT * FROM {{}} WHERE {'landed_version < version' if is_ours else '1'} ORDER BY rowid"
        operations, observations = (self._all(changed.format(table)) for table in ("operations", OBSERVATIONS))
        return (
            [(build_record(Entry, row), int(row["version"])) for row in operations],
            [(build_record(Observation, row), int(row["version"])) for row in observations],
        )

    def set_loaded(self, entries: Iterable[tuple[Entry, int]], observations: Iterable[tuple[Observation, int]]) -> None:
        """Record which versions the warehouse has now; a row that has changed since is loaded again."""
        loaded = (("operations", "operation_id", entries), (OBSERVATIONS, "key", observations))
        with self._transaction():
            for table, key, records in loaded:
                for record, version in records:
                    values = (version, getattr(record, key))
                    self._run(f"UPDATE {table} SET landed_version = ? WHERE {key} = ?", values)
            self._store_workspace()

    def forget_loaded(self) -> None:
        """Record that the warehouse may lack any row."""
        self._run("DELETE FROM loaded_from")

    def _store_workspace(self) -> None:
        self._run("DELETE FROM loaded_from")
        self._run("INSERT INTO loaded_from VALUES (?)", (self._workspace,))

    # -- erasure

    def remove_people(self, is_erased: Callable[[str], bool], replace_erased: Callable[[str], str]) -> int:
        """Remove erased people from every row, so that no byte of them stays. Returns how many rows changed."""
        changed = 0
        with self._transaction():
            for table, key, texts in TEXTS:
                for row in self._all(f"SELECT * FROM {table}"):
                    handles = json.loads(row["handles"] or "[]")
                    others = [handle for handle in handles if not is_erased(handle)]
                    if handles and not others and table == "operations":
                        changed += 1
                        self._run(f"DELETE FROM {table} WHERE {key} = ?", (row[key],))
                        continue
                    values = {name: row[name] and replace_erased(row[name]) for name in texts}
                    values |= {"handles": json.dumps(others)} if others != handles else {}
                    values = {name: value for name, value in values.items() if value != row[name]}
                    if values:
                        changed += 1
                        assignments = ", ".join(f"{name} = ?" for name in values)
                        self._run(f"UPDATE {table} SET {assignments} WHERE {key} = ?", (*values.values(), row[key]))
            for rendering in self.list_renderings():
                if any(is_erased(text) or replace_erased(text) != text for text in (rendering.shown, rendering.asked)):
                    changed += 1
                    self._run(
                        "DELETE FROM renderings WHERE chat_id = ? AND field = ? AND shown = ?",
                        (rendering.chat_id, rendering.field, rendering.shown),
                    )
        if changed:
            self._run("VACUUM")
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")
        return changed

    # -- the database

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Mapping[str, Any]]:
        with self._lock, _explain_damage(self._path):
            return [dict(row) for row in self._database.execute(sql, values).fetchall()]

    def _run(self, sql: str, values: Sequence[Any] = ()) -> None:
        with self._lock, _explain_damage(self._path):
            self._database.execute(sql, values)

    def _insert(self, table: str, record: Record, on_conflict: str = "") -> None:
        values = {field.name: _to_sql(getattr(record, field.name)) for field in fields(record)}
        statement = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))}) {on_conflict}"
        self._run(statement, [*values.values()])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._database:
            self._run("BEGIN IMMEDIATE")
            yield


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, or a full disk
            raise
        raise MsgBubblesError(
            f"{path} is damaged: move it and {LEDGER}-wal to another folder. The next groups.py command restores it "
            "from the warehouse"
        ) from None


def build_record(kind: type[Row], values: Mapping[str, Any]) -> Row:
    """Build an operation or an observation from the columns of its row. `handles` are JSON."""
    handles = json.loads(values["handles"]) if values["handles"] else None
    is_gone = {"is_gone": bool(values["is_gone"])} if kind is Observation else {}
    return msgspec.convert({**values, **is_gone, "handles": handles}, kind)


def _to_sql(value: Any) -> Any:
    if isinstance(value, tuple):
        return json.dumps(value)
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value
