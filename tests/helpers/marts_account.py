"""Generate random loads of a changing account, with everything that makes increments hard."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from helpers.message_reference import Row, World
from msgbubbles_sync.tables import TABLES as DECLARED

# Two spellings of one number.
ONE, OTHER = "+541123456789", "+5491123456789"


class Account:
    """A random account. `next_load()` returns a load, `world` all rows loaded so far. Load ids have no order."""

    def __init__(self, seed: int, at: Callable[[int], datetime]) -> None:
        self.random = random.Random(seed)
        self._contacts = random.Random(seed)
        self._at = at
        self._loaded: dict[str, dict[Any, Row]] = {table: {} for table in TABLES}
        self._messages: dict[str, Row] = {}
        self._chats: list[str] = []
        self.load_ids = [f"{1_790_000_000 + n}.{n}" for n in range(100)]
        self.random.shuffle(self.load_ids)

    @property
    def world(self) -> World:
        return {table: list(rows.values()) for table, rows in self._loaded.items()}

    def next_load(self, *, size: int = 1, messages: int | None = None) -> World:
        """Return the next load, of a random number of messages if `messages` does not say how many."""
        pick = self.random.choice
        changed = [self.chat(pick([None, *self._chats])) for _ in range(size * pick([0, 1, 4]))]
        count = size * pick([0, 3, 10, 30]) if messages is None else messages
        written = [self._message(pick([None, None, *self._messages])) for _ in range(count)]
        load = {
            # A chat may come with a later load than its messages, or never.
            "chats": [chat for chat in changed if pick([True, True, False])],
            "messages": written,
            "numbers": [{"handle": pick(["+1", "+2"])}],
            "stream_coverage": [self._coverage()] if pick([True, False]) else [],
            "chat_titles": [self._title(chat) for chat in self._chats if pick([True, False, False])],
            "participant_lists": [
                row for chat in self._chats if pick([True, False, False]) for row in self._list(chat)
            ],
            "group_member_operations": [self._operation(chat) for chat in self._chats if pick([True, False, False])],
            "webhook_events": [self._event(chat) for chat in self._chats if pick([True, False])],
            "attachments": [self._attachment(row["id"]) for row in written if pick([True, False])],
            "contact_aliases": [self._alias() for _ in range(self._contacts.choice([0, 1, 2]))],
        }
        for table, rows in load.items():
            for row in rows:
                self._loaded[table][tuple(row[column] for column in DECLARED[table].key)] = row
        return load

    def _time(self, *others: Any) -> Any:
        """Return one of a few times over some days, so that ties occur."""
        return self.random.choice([*others, *(self._at(n * 700) for n in range(14))])

    def chat(self, key: str | None) -> Row:
        """Return the row of a chat, or of a new one."""
        pick = self.random.choice
        if key is None:
            key = f"c{len(self._chats)}"
            self._chats.append(key)
        return {
            "id": key,
            "from_handle": pick(["+1", "+1", "+2", None]),
            "remote_handle": self._contacts.choice([pick([ONE, "+9", "+10", "+11"])] * 4 + ["+12", "+13"]),
            "is_group": pick([True, False, True, False, None]),
            "title": pick([None, "old", "new"]),
            "last_message_at": self._time(None),
            "created_at": self._time(None),
            "deleted_at": pick([None, None, self._at(99)]),
            "_fetched_at": self._time(),
        }

    def _message(self, key: str | None) -> Row:
        pick = self.random.choice
        row = {
            "id": key or f"m{len(self._messages)}",
            "conversation_id": pick([None, "never read", *self._chats, *self._chats]),
            "cursor_at": self._time(None),
            "direction": pick(["inbound", "outbound", "inbound", "outbound", None]),
            "status": pick(["sent", "failed", "delivered", "read", None]),
            "channel": pick(["imessage", "sms", "whatsapp", None]),
            "sender_handle": pick(["+1", ONE, OTHER, None]),
            "attachment_count": pick([None, 0, 2]),
            "error": pick([None, '{"code": "send_failed"}', '{"error": "blocked"}', '"text"']),
            "sent_at": self._time(None),
            "delivered_at": self._time(None, None),
            "read_at": pick([None, None, self._at(1)]),
            "_fetched_at": self._time(),
        }
        if key and pick([True, False]):
            row = self._messages[key] | {"status": row["status"]}
        self._messages[row["id"]] = row
        return row

    def _coverage(self) -> Row:
        since = self.random.choice([None, datetime(1970, 1, 1, tzinfo=UTC), self._time()])
        return {"stream": "messages", "complete_since": since, "complete_to": since and self._time()}

    def _title(self, chat: str) -> Row:
        return {
            "chat_id": chat,
            "title": self.random.choice([None, "old", "new"]),
            "updated_at": self._time(None),
            "_fetched_at": self._time(),  # it may be loaded after later ones, or replace one
        }

    def _list(self, chat: str) -> list[Row]:
        at = self._time()
        handles: list[str | None] = [*self.random.sample(["+1", ONE, OTHER, "+9"], self.random.choice([0, 1, 3]))] or [
            None
        ]
        return [
            {"id": f"{chat}|{at}|{handle}", "chat_id": chat, "handle": handle, "_fetched_at": at} for handle in handles
        ]

    def _operation(self, chat: str) -> Row:
        number = self.random.randrange(1000)
        return {
            "id": f"{chat} {number}",
            "chat_id": chat,
            "handle": self.random.choice([ONE, OTHER]),
            "operation": self.random.choice(["added", "removed"]),
            "happened_at": self._time(),
            "_fetched_at": self._time(),
        }

    def _attachment(self, message: str) -> Row:
        pick = self.random.choice
        return {
            "id": f"{message} {pick([1, 2, 3])}",
            "message_id": message,
            "mime_type": pick(["image/png", "Image/jpeg", "video/mp4", "application/pdf", None]),
            "size_bytes": pick([None, 0, 3_000_000_000]),
            "removed_at": pick([None, None, self._at(5)]),
            "_fetched_at": self._time(),
        }

    def _alias(self) -> Row:
        pick = self._contacts.choice
        return {"handle": pick([ONE, "+9", "+10"]), "contact": pick(["Ann", "Ann", "Ben", None])}

    def _event(self, chat: str) -> Row:
        pick = self.random.choice
        at = self._time() + timedelta(minutes=pick([-1, 0, 3]))
        return {
            "event_id": f"e{len(self._loaded['webhook_events'])} {self.random.random()}",
            "event_type": pick(["conversation.typing"] * 4 + ["message.received"] + ["message.reaction"] * 3),
            "chat_id": pick([chat, chat, chat, "never read", None]),
            "handle": pick(["+1", ONE, OTHER, None]),
            "is_typing": pick([True, True, False, None]),
            "direction": pick(["inbound", "inbound", "outbound", None]),
            "message_id": pick(["m0", "m1", None]),
            "reaction": pick(["love", "like", None]),
            "occurred_at": at,
            "received_at": at,
        }


TABLES = (
    "chats", "messages", "numbers", "stream_coverage", "chat_titles", "participant_lists", "group_member_operations",
    "webhook_events", "attachments", "contact_aliases",
)  # fmt: skip
