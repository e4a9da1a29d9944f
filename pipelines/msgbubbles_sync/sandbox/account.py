"""A simulated MsgBubbles account in a SQLite file, and the operations on it.

Timestamps are stored in microseconds since 1970 (UTC) and shown truncated to milliseconds, so that rows with equal
timestamps can have an order.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HANDLE = re.compile(r"\+[1-9]\d{6,14}|[^@\s]+@[^@\s]+\.[^@\s]+")
MAX_TITLE = 100

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbers (handle TEXT PRIMARY KEY, channels TEXT, label TEXT, status TEXT);
CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, from_handle TEXT, remote_handle TEXT, is_group INTEGER,
    title TEXT, last_us INTEGER, created_us INTEGER, updated_us INTEGER, deleted INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS chats_by_time ON chats (last_us DESC, id);
CREATE TABLE IF NOT EXISTS participants (chat_id TEXT, handle TEXT, PRIMARY KEY (chat_id, handle)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (id TEXT PRIMARY KEY, chat_id TEXT, direction TEXT, status TEXT, channel TEXT,
    text TEXT, effect TEXT, reply_to TEXT, error TEXT, metadata TEXT, sender TEXT, created_us INTEGER,
    sent_us INTEGER, delivered_us INTEGER, read_us INTEGER, updated_us INTEGER, has_attachments INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS messages_by_time ON messages (created_us DESC, id);
CREATE INDEX IF NOT EXISTS messages_by_chat ON messages (chat_id, created_us DESC, id);
CREATE TABLE IF NOT EXISTS attachments (id TEXT PRIMARY KEY, message_id TEXT, filename TEXT, mime_type TEXT,
    size_bytes INTEGER, created_us INTEGER);
CREATE INDEX IF NOT EXISTS attachments_by_message ON attachments (message_id);
CREATE TABLE IF NOT EXISTS reactions (message_id TEXT, handle TEXT, reaction TEXT, at_us INTEGER,
    PRIMARY KEY (message_id, handle)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS webhooks (id TEXT PRIMARY KEY, url TEXT, events TEXT, secret TEXT, created_us INTEGER);
CREATE TABLE IF NOT EXISTS deliveries (number INTEGER PRIMARY KEY, delivery_id TEXT, webhook_id TEXT, body BLOB,
    attempts INTEGER DEFAULT 0, due REAL DEFAULT 0);
CREATE TABLE IF NOT EXISTS idempotency (key TEXT PRIMARY KEY, request TEXT, result TEXT) WITHOUT ROWID;
"""


class Fault(Exception):  # noqa: N818 - what the API calls it
    """An error answer of the API."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class NewMessage:
    """A message for `Account.add_messages`. `status` decides which of the other timestamps are set."""

    chat_id: str
    direction: str
    text: str | None
    at: datetime
    status: str
    channel: str | None = "imessage"
    sender: str | None = None
    effect: str | None = None
    reply_to: str | None = None
    error: Mapping[str, object] | None = None
    metadata: Mapping[str, object] | None = None
    delivered_at: datetime | None = None
    read_at: datetime | None = None
    attachments: Sequence[tuple[str, str, int]] = ()
    id: str = ""


class Account:
    """The account. Safe to use from several threads."""

    def __init__(self, path: Path | None = None) -> None:
        self.lock = threading.RLock()
        # Called for each event, within its transaction: kind, time, chat, message and further fields.
        self.on_event: Callable[[str, datetime, str, str | None, Mapping[str, object]], None] = lambda *_: None
        self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        # Many tests drop an account with its server, and Python 3.13 warns about a database that is not closed.
        # `__del__` can be too late: of objects in a cycle, the collector may finalize the database first.
        weakref.finalize(self, self._database.close)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(SCHEMA)

    def close(self) -> None:
        self._database.close()

    def all(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        with self.lock:
            return self._database.execute(sql, values).fetchall()

    def one(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Row | None:
        rows = self.all(sql, values)
        return rows[0] if rows else None

    def run(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        with self.lock:
            return self._database.execute(sql, values).rowcount

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """Make many changes in one transaction."""
        with self.lock:
            if self._database.in_transaction:
                yield
                return
            with self._database:
                self._database.execute("BEGIN")
                yield

    def remember(self, name: str, value: str) -> None:
        self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def recall(self, name: str) -> str | None:
        row = self.one("SELECT value FROM meta WHERE name = ?", (name,))
        return None if row is None else str(row["value"])

    # -- changes

    def add_number(self, handle: str, label: str, channels: Iterable[str] = ("imessage", "sms")) -> str:
        self.run("INSERT INTO numbers VALUES (?, ?, ?, 'active')", (handle, json.dumps(list(channels)), label))
        return handle

    def add_chat(
        self,
        from_handle: str,
        remote_handle: str,
        at: datetime,
        *,
        is_group: bool = False,
        title: str | None = None,
        participants: Iterable[str] = (),
        last_message_at: datetime | None = None,
        chat_id: str | None = None,
    ) -> str:
        chat_id = chat_id or str(uuid4())
        last_us = None if last_message_at is None else to_us(last_message_at)
        with self.bulk():
            self.run(
                "INSERT INTO chats VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (chat_id, from_handle, remote_handle, is_group, title, last_us, to_us(at), to_us(at)),
            )
            for handle in participants:
                self.run("INSERT OR IGNORE INTO participants VALUES (?, ?)", (chat_id, handle))
        return chat_id

    def add_message(self, message: NewMessage) -> str:
        return self.add_messages([message])[0]

    def add_messages(self, messages: Iterable[NewMessage]) -> list[str]:
        """Add messages, and move `last_message_at` of their chats."""
        messages = list(messages)
        rows, files = [], []
        newest: dict[str, int] = {}
        for message in messages:
            at_us = to_us(message.at)
            message_id = message.id or str(uuid4())
            sent_us = None if message.status == "queued" else at_us
            delivered_us = None if message.delivered_at is None else to_us(message.delivered_at)
            read_us = None if message.read_at is None else to_us(message.read_at)
            updated_us = max(at_us, delivered_us or 0, read_us or 0)
            newest[message.chat_id] = max(newest.get(message.chat_id, 0), at_us)
            rows.append(
                (
                    message_id, message.chat_id, message.direction, message.status, message.channel, message.text,
                    message.effect, message.reply_to, _json(message.error), _json(message.metadata), message.sender,
                    at_us, sent_us, delivered_us, read_us, updated_us, bool(message.attachments),
                )
            )  # fmt: skip
            for name, mime_type, size in message.attachments:
                files.append((str(uuid4()), message_id, name, mime_type, size, at_us))
        with self.bulk():
            self._database.executemany(f"INSERT INTO messages VALUES ({', '.join('?' * 17)})", rows)
            self._database.executemany("INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?)", files)
            self._database.executemany(
                "UPDATE chats SET last_us = max(coalesce(last_us, 0), ?), updated_us = max(updated_us, ?) WHERE id = ?",
                [(at_us, at_us, chat_id) for chat_id, at_us in newest.items()],
            )
            for message, row in zip(messages, rows, strict=True):
                for kind, at in _list_events(message):
                    self.on_event(kind, at, message.chat_id, row[0], {})
        return [row[0] for row in rows]

    def set_status(self, message_id: str, status: str, at: datetime) -> None:
        """Change the status of a message. `created_at` and the chat's `last_message_at` stay."""
        column = {"sent": "sent_us", "delivered": "delivered_us", "read": "read_us"}.get(status, "updated_us")
        with self.bulk():
            self.run(
                f"UPDATE messages SET status = ?, {column} = ?, updated_us = ? WHERE id = ?",
                (status, to_us(at), to_us(at), message_id),
            )
            if status in ("sent", "delivered", "read", "failed"):
                self.on_event(f"message.{status}", at, self._find_chat(message_id), message_id, {})

    def react(self, message_id: str, handle: str, reaction: str, at: datetime) -> None:
        """React to a message, in place of an earlier reaction of the same handle."""
        with self.bulk():
            self.run("INSERT OR REPLACE INTO reactions VALUES (?, ?, ?, ?)", (message_id, handle, reaction, to_us(at)))
            self.run("UPDATE messages SET updated_us = ? WHERE id = ?", (to_us(at), message_id))
            more = {"reaction": reaction, "handle": handle}
            self.on_event("message.reaction", at, self._find_chat(message_id), message_id, more)

    def type(self, chat_id: str, handle: str, typing: bool, at: datetime) -> None:
        """Start or stop typing on the other side. Only webhooks report it."""
        with self.bulk():
            self.on_event("conversation.typing", at, chat_id, None, {"handle": handle, "typing": typing})

    def _find_chat(self, message_id: str) -> str:
        return str(self.all("SELECT chat_id FROM messages WHERE id = ?", (message_id,))[0]["chat_id"])

    def edit_text(self, message_id: str, text: str, at: datetime) -> None:
        self.run("UPDATE messages SET text = ?, updated_us = ? WHERE id = ?", (text, to_us(at), message_id))

    def rename(self, chat_id: str, title: str | None, at: datetime) -> None:
        self.run("UPDATE chats SET title = ?, updated_us = ? WHERE id = ?", (title, to_us(at), chat_id))

    def add_participant(self, chat_id: str, handle: str, at: datetime) -> bool:
        """Add a participant. Returns whether it was not one before."""
        with self.bulk():
            added = self.run("INSERT OR IGNORE INTO participants VALUES (?, ?)", (chat_id, handle))
            self.run("UPDATE chats SET updated_us = ? WHERE id = ?", (to_us(at), chat_id))
        return bool(added)

    def remove_participant(self, chat_id: str, handle: str, at: datetime) -> bool:
        with self.bulk():
            removed = self.run("DELETE FROM participants WHERE chat_id = ? AND handle = ?", (chat_id, handle))
            self.run("UPDATE chats SET updated_us = ? WHERE id = ?", (to_us(at), chat_id))
        return bool(removed)

    def delete_chat(self, chat_id: str) -> None:
        self.run("UPDATE chats SET deleted = 1 WHERE id = ?", (chat_id,))

    def restore_chat(self, chat_id: str) -> None:
        self.run("UPDATE chats SET deleted = 0 WHERE id = ?", (chat_id,))

    def mark_read(self, chat_id: str, at: datetime) -> None:
        self.run(
            "UPDATE messages SET read_us = ?, updated_us = ? "
            "WHERE chat_id = ? AND direction = 'inbound' AND read_us IS NULL",
            (to_us(at), to_us(at), chat_id),
        )

    def participants(self, chat_id: str) -> list[str]:
        rows = self.all("SELECT handle FROM participants WHERE chat_id = ? ORDER BY handle", (chat_id,))
        return [row["handle"] for row in rows]


def _list_events(message: NewMessage) -> Iterator[tuple[str, datetime]]:
    """Yield the kinds of events of a new message, and their timestamps."""
    if message.direction == "inbound":
        yield "message.received", message.at
    elif message.status != "queued":
        yield "message.sent", message.at
        if message.delivered_at is not None:
            yield "message.delivered", message.delivered_at
        if message.read_at is not None:
            yield "message.read", message.read_at
        if message.status == "failed":
            yield "message.failed", message.at


def to_us(at: datetime) -> int:
    """Return microseconds since 1970."""
    return (at - EPOCH) // timedelta(microseconds=1)


def format_us(at_us: int | None) -> str | None:
    """Return a timestamp as the API shows it."""
    if at_us is None:
        return None
    return (EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_uuid(value: str) -> bool:
    try:
        return str(UUID(value)) == value
    except ValueError:
        return False


def _json(value: Mapping[str, object] | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
