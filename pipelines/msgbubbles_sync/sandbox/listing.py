"""List chats and messages in pages, in any order that the knobs set, with rows as the API shows them."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from .account import Account, Fault, shown, us
from .knobs import Knobs

TIE_ORDERS = {"stable": "id", "reversed": "id DESC", "random": "random()"}


def page_size(request: Request) -> int:
    limit = request.query_params.get("limit", "50")
    if not limit.isdigit() or not 1 <= int(limit) <= 100:
        raise Fault(400, "invalid_request", "limit must be a number from 1 to 100")
    return int(limit)


def page_before(request: Request) -> int | None:
    """Return `before` in microseconds."""
    before = request.query_params.get("before")
    if before is None:
        return None
    try:
        at = datetime.fromisoformat(before)
    except ValueError:
        raise Fault(400, "invalid_request", "before must be an ISO 8601 timestamp") from None
    return us(at if at.tzinfo else at.replace(tzinfo=UTC))


def list_chats(
    account: Account, knobs: Knobs, limit: int, before_us: int | None, chance: random.Random
) -> tuple[list[dict[str, Any]], bool]:
    """Return a page of chats, and whether there are more."""
    where, values = "NOT deleted", []
    if before_us is not None:
        sign = "<=" if knobs.before_inclusive else "<"
        without = " OR last_us IS NULL" if knobs.nulls_with_before else ""
        where += f" AND (last_us {sign} ?{without})"
        values.append(before_us)
    nulls = f"last_us DESC NULLS {knobs.nulls.upper()}"
    found = account.all(
        f"SELECT * FROM chats WHERE {where} ORDER BY {nulls}, {TIE_ORDERS[knobs.tie_order]} LIMIT ?",
        (*values, limit + 1),
    )
    page, has_more = _page(found, knobs, limit, chance)
    return [chat_row(row, knobs) for row in page], has_more


def list_messages(
    account: Account,
    knobs: Knobs,
    limit: int,
    before_us: int | None,
    chance: random.Random,
    chat_id: str | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """Return a page of messages, of one chat or of the account, and whether there are more."""
    where = ["1"]
    values: list[str | int] = []
    if chat_id is not None:
        where.append("chat_id = ?")
        values.append(chat_id)
    elif account.one("SELECT 1 FROM chats WHERE deleted LIMIT 1"):
        where.append("chat_id NOT IN (SELECT id FROM chats WHERE deleted)")
    if before_us is not None:
        where.append(f"created_us {'<=' if knobs.before_inclusive else '<'} ?")
        values.append(before_us)
    found = account.all(
        f"SELECT * FROM messages WHERE {' AND '.join(where)} "
        f"ORDER BY created_us DESC, {TIE_ORDERS[knobs.tie_order]} LIMIT ?",
        (*values, limit + 1),
    )
    page, has_more = _page(found, knobs, limit, chance)
    return message_rows(account, knobs, page), has_more


def _page(found: list[sqlite3.Row], knobs: Knobs, limit: int, chance: random.Random) -> tuple[list[sqlite3.Row], bool]:
    has_more = len(found) > limit
    page = found[:limit]
    if len(page) > 1 and chance.random() < knobs.short_pages:
        page = page[: chance.randint(1, len(page) - 1)]
        has_more = True
    if knobs.shuffled_pages:
        chance.shuffle(page)
    return page, has_more


def chat_row(row: sqlite3.Row, knobs: Knobs) -> dict[str, Any]:
    return {
        "id": row["id"],
        "from_handle": row["from_handle"],
        "remote_handle": row["remote_handle"],
        "is_group": bool(row["is_group"]),
        "title": row["title"],
        "last_message_at": shown(row["last_us"]),
        "created_at": shown(row["created_us"]),
        "updated_at": shown(row["updated_us"]),
        **knobs.extra_fields,
    }


def message_rows(account: Account, knobs: Knobs, rows: list[sqlite3.Row]) -> list[dict[str, Any]]:
    files = _attachments(account, [row["id"] for row in rows if row["has_attachments"]])
    reactions = _reactions(account, [row["id"] for row in rows])
    shown_rows = []
    for row in rows:
        message = {
            "id": row["id"],
            "conversation_id": row["chat_id"],
            "direction": row["direction"],
            "status": row["status"],
            "channel": row["channel"],
            "text": row["text"],
            "effect": row["effect"],
            "reply_to": row["reply_to"],
            "error": json.loads(row["error"]) if row["error"] else None,
            "metadata": json.loads(row["metadata"]) if row["metadata"] else None,
            "attachments": files.get(row["id"], []),
            "sent_at": shown(row["sent_us"]),
            "delivered_at": shown(row["delivered_us"]),
            "read_at": shown(row["read_us"]),
            **knobs.extra_fields,
        }
        if knobs.sender_on_messages:
            message["sender"] = row["sender"]
        if knobs.created_at_on_messages:
            message["created_at"] = shown(row["created_us"])
            message["updated_at"] = shown(row["updated_us"])
        if reacted := reactions.get(row["id"]):
            message["reactions"] = reacted
        shown_rows.append(message)
    return shown_rows


def _reactions(account: Account, message_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    if not message_ids or not account.one("SELECT 1 FROM reactions LIMIT 1"):
        return found
    marks = ", ".join("?" * len(message_ids))
    for row in account.all(f"SELECT * FROM reactions WHERE message_id IN ({marks}) ORDER BY handle", message_ids):
        found.setdefault(row["message_id"], []).append({"handle": row["handle"], "reaction": row["reaction"]})
    return found


def _attachments(account: Account, message_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    files: dict[str, list[dict[str, Any]]] = {}
    if not message_ids:
        return files
    marks = ", ".join("?" * len(message_ids))
    for row in account.all(f"SELECT * FROM attachments WHERE message_id IN ({marks}) ORDER BY id", message_ids):
        signature = f"{time.time_ns():x}"
        files.setdefault(row["message_id"], []).append(
            {
                "id": row["id"],
                "filename": row["filename"],
                "mime_type": row["mime_type"],
                "size_bytes": row["size_bytes"],
                "url": f"https://files.msgbubbles.example/{row['id']}?expires=600&signature={signature}",
                "message_id": row["message_id"],
                "created_at": shown(row["created_us"]),
            }
        )
    return files


def number_rows(account: Account) -> list[dict[str, Any]]:
    return [
        {
            "handle": row["handle"],
            "channels": json.loads(row["channels"]),
            "label": row["label"],
            "status": row["status"],
        }
        for row in account.all("SELECT * FROM numbers ORDER BY handle")
    ]


@dataclass(frozen=True)
class Truth:
    """Return every row that the API would show now, as it would show it."""

    chats: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    numbers: list[dict[str, Any]]


def truth(account: Account, knobs: Knobs) -> Truth:
    with account.lock:
        chats = account.all("SELECT * FROM chats WHERE NOT deleted")
        messages = account.all("SELECT * FROM messages WHERE chat_id NOT IN (SELECT id FROM chats WHERE deleted)")
        rows = []
        for start in range(0, len(messages), 500):
            rows += message_rows(account, knobs, messages[start : start + 500])
        return Truth([chat_row(row, knobs) for row in chats], rows, number_rows(account))
