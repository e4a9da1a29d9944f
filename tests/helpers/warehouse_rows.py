"""Compare the warehouse with the rows that the sandbox's truth says it should have, without the product's code."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles_sync.sandbox import Truth

TIMES = {"last_message_at", "created_at", "updated_at", "sent_at", "delivered_at", "read_at", "cursor_at"}
JSON = {"error", "metadata", "channels", "extra"}
CHAT = ("id", "from_handle", "remote_handle", "is_group", "title", "last_message_at", "created_at", "updated_at")
MESSAGE = ("id", "conversation_id", "direction", "status", "channel", "text", "effect", "reply_to", "error", "metadata",
           "sent_at", "delivered_at", "read_at", "created_at", "updated_at")  # fmt: skip
ATTACHMENT = ("id", "message_id", "filename", "mime_type", "size_bytes", "created_at")
NUMBER = ("handle", "channels", "label", "status")

Rows = dict[str, dict[str, Any]]


def expected(truth: Truth) -> dict[str, Rows]:
    messages = {}
    for row in truth.messages:
        message = {name: _time(row.get(name)) if name in TIMES else row.get(name) for name in MESSAGE}
        message["sender_handle"] = row.get("sender")
        message["attachment_count"] = len(row["attachments"])
        message["cursor_at"] = message["created_at"] or message["sent_at"]
        message["from_event_at"] = None  # each message has been read
        messages[row["id"]] = message
    return {
        "chats": {row["id"]: _select(row, CHAT) | {"deleted_at": None, "from_event_at": None} for row in truth.chats},
        "messages": messages,
        "attachments": {
            file["id"]: _select(file, ATTACHMENT) | {"removed_at": None}
            for row in truth.messages
            for file in row["attachments"]
        },
        "numbers": {row["handle"]: _select(row, NUMBER) for row in truth.numbers},
    }


def read_rows(database: Path) -> dict[str, Rows]:
    """Return the rows of the published file. A duplicate key fails."""
    with duckdb.connect(str(database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return select_rows(connection)


def select_rows(connection: duckdb.DuckDBPyConnection) -> dict[str, Rows]:
    """Return the rows that a connection reads. A duplicate key fails."""
    tables: dict[str, Rows] = {}
    for table, key in (("chats", "id"), ("messages", "id"), ("attachments", "id"), ("numbers", "handle")):
        answer = connection.execute(f"SELECT * EXCLUDE (_fetched_at, _dlt_load_id, extra) FROM msgbubbles.{table}")
        names = [column[0] for column in answer.description]
        rows: Rows = {}
        for values in answer.fetchall():
            row = {n: json.loads(v) if n in JSON and v else v for n, v in zip(names, values, strict=True)}
            assert row[key] not in rows, f"{table}: a key is duplicated"
            rows[row[key]] = row
        tables[table] = rows
    return tables


def alive(have: dict[str, Rows]) -> dict[str, Rows]:
    """Return the rows without deleted chats and their messages and attachments."""
    gone = {key for key, row in have["chats"].items() if row["deleted_at"] is not None}
    messages = {key: row for key, row in have["messages"].items() if row["conversation_id"] not in gone}
    return {
        **have,
        "chats": {key: row for key, row in have["chats"].items() if key not in gone},
        "messages": messages,
        "attachments": {
            key: row
            for key, row in have["attachments"].items()
            if row["message_id"] in messages and row["removed_at"] is None
        },
    }


def differences(database: Path, truth: Truth) -> dict[str, dict[str, int]]:
    """Return by table the number of missing, surplus and stale rows.

    A deleted chat and its messages should be present, and marked as deleted.
    """
    return differences_of(read_rows(database), truth)


def differences_of(have: dict[str, Rows], truth: Truth) -> dict[str, dict[str, int]]:
    want, have = expected(truth), alive(have)
    counts = {
        table: {
            "missing": len(want[table].keys() - have[table].keys()),
            "surplus": len(have[table].keys() - want[table].keys()),
            "stale": sum(have[table][key] != row for key, row in want[table].items() if key in have[table]),
        }
        for table in want
    }
    return {table: count for table, count in counts.items() if any(count.values())}


def _select(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _time(row[name]) if name in TIMES else row[name] for name in names}


def _time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)
