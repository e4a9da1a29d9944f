"""List chats and messages in pages, in any order that the knobs set, with rows as the API shows them."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from .account import Account, Fault, format_us, to_us
from .knobs import Knobs

Row = dict[str, Any]
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
    return to_us(at if at.tzinfo else at.replace(tzinfo=UTC))


def list_chats(
    account: Account, knobs: Knobs, limit: int, before_us: int | None, chance: random.Random
) -> tuple[list[Row], bool]:
    """Return a page of chats, and whether there are more."""
    where, values = "NOT deleted", []
    if before_us is not None:
        sign = "<=" if knobs.before_inclusive else "<"
        without = " OR last_us IS NULL" if knobs.nulls_with_before else ""
        where += f" AND (last_us {sign} ?{without})"
        values.append(before_us)
    nulls = f"last_us DESC NULLS {knobs.nulls.upper()}"
    rows = account.all(
        f"SELECT * FROM chats WHERE {where} ORDER BY {nulls}, {TIE_ORDERS[knobs.tie_order]} LIMIT ?",
        (*values, limit + 1),
    )
    page, has_more = _page(rows, knobs, limit, chance)
    return [chat_row(row, knobs) for row in page], has_more


def list_messages(
    account: Account, knobs: Knobs, limit: int, before_us: int | None, chance: random.Random, chat_id: str | None = None
) -> tuple[list[Row], bool]:
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
    rows = account.all(
        f"SELECT * FROM messages WHERE {' AND '.join(where)} "
        f"ORDER BY created_us DESC, {TIE_ORDERS[knobs.tie_order]} LIMIT ?",
        (*values, limit + 1),
    )
    page, has_more = _page(rows, knobs, limit, chance)
    return message_rows(account, knobs, page), has_more


def _page(rows: list[sqlite3.Row], knobs: Knobs, limit: int, chance: random.Random) -> tuple[list[sqlite3.Row], bool]:
    has_more = len(rows) > limit
    page = rows[:limit]
    if len(page) > 1 and chance.random() < knobs.short_pages:
        page = page[: chance.randint(1, len(page) - 1)]
        has_more = True
    if knobs.shuffled_pages:
        chance.shuffle(page)
    return page, has_more


def chat_row(row: sqlite3.Row, knobs: Knobs) -> Row:
    return {
        **{name: row[name] for name in ("id", "from_handle", "remote_handle", "title")},
        "is_group": bool(row["is_group"]),
        "last_message_at": format_us(row["last_us"]),
        "created_at": format_us(row["created_us"]),
        "updated_at": format_us(row["updated_us"]),
        **knobs.extra_fields,
    }


def message_rows(account: Account, knobs: Knobs, rows: list[sqlite3.Row]) -> list[Row]:
    files = _attachments(account, [row["id"] for row in rows if row["has_attachments"]])
    reactions = _reactions(account, [row["id"] for row in rows])
    messages = []
    for row in rows:
        message = {
            "id": row["id"],
            "conversation_id": row["chat_id"],
            **{name: row[name] for name in ("direction", "status", "channel", "text", "effect", "reply_to")},
            **{name: json.loads(row[name] or "null") for name in ("error", "metadata")},
            "attachments": files.get(row["id"], []),
            **{f"{name}_at": format_us(row[f"{name}_us"]) for name in ("sent", "delivered", "read")},
            **knobs.extra_fields,
        }
        if knobs.sender_on_messages:
            message["sender"] = row["sender"]
        if knobs.created_at_on_messages:
            message["created_at"] = format_us(row["created_us"])
            message["updated_at"] = format_us(row["updated_us"])
        if reacted := reactions.get(row["id"]):
            message["reactions"] = reacted
        messages.append(message)
    return messages


def _reactions(account: Account, message_ids: list[str]) -> dict[str, list[dict[str, object]]]:
    reactions = defaultdict(list)
    if account.one("SELECT 1 FROM reactions LIMIT 1"):
        for row in _select(account, "reactions", "handle", message_ids):
            reactions[row["message_id"]].append({"handle": row["handle"], "reaction": row["reaction"]})
    return reactions


def _attachments(account: Account, message_ids: list[str]) -> dict[str, list[dict[str, object]]]:
    files = defaultdict(list)
    for row in _select(account, "attachments", "id", message_ids):
        signature = f"{time.time_ns():x}"
        file = {name: row[name] for name in ("id", "filename", "mime_type", "size_bytes", "message_id")}
        file["url"] = f"https://files.msgbubbles.example/{row['id']}?expires=600&signature={signature}"
        file["created_at"] = format_us(row["created_us"])
        files[row["message_id"]].append(file)
    return files


def _select(account: Account, table: str, order: str, message_ids: list[str]) -> list[sqlite3.Row]:
    marks = ", ".join("?" * len(message_ids))
    return account.all(f"SELECT * FROM {table} WHERE message_id IN ({marks}) ORDER BY {order}", message_ids)


def number_rows(account: Account) -> list[Row]:
    rows = account.all("SELECT * FROM numbers ORDER BY handle")
    return [{**row, "channels": json.loads(row["channels"])} for row in rows]


@dataclass(frozen=True)
class Truth:
    """Every row that the API would show now, as it would show it."""

    chats: list[Row]
    messages: list[Row]
    numbers: list[Row]


def truth(account: Account, knobs: Knobs) -> Truth:
    with account.lock:
        chats = account.all("SELECT * FROM chats WHERE NOT deleted")
        messages = account.all("SELECT * FROM messages WHERE chat_id NOT IN (SELECT id FROM chats WHERE deleted)")
        rows = []
        for start in range(0, len(messages), 500):
            rows += message_rows(account, knobs, messages[start : start + 500])
        return Truth([chat_row(row, knobs) for row in chats], rows, number_rows(account))
