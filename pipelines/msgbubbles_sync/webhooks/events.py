"""Parse events whose payloads may have any of the usual structures.

The public documentation has the names of the events and says that a delivery is not wrapped in `data`, but not how a
payload is built. So each value is looked up at the top and in the objects of the event (`message`, `data`, ...). Values
that are missing are null; the whole payload is stored anyway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from msgbubbles.envelope import fix_encoding
from msgbubbles.lenient import remove_links
from msgbubbles.models import Chat, Message
from msgbubbles.redact_payloads import CHAT_IDS, CHAT_OBJECTS, INNER, MESSAGE_OBJECT
from msgbubbles.times import parse_time

from .bodies import parse_json
from .deliveries import ONE_TIME_TYPES, read_event_type
from .spool import Delivery

MESSAGE_TYPES = (*ONE_TIME_TYPES, "message.reaction")
TYPING = "conversation.typing"
KNOWN_TYPES = (*MESSAGE_TYPES, TYPING)
# The times of a message that show when an event about it occurred.
MESSAGE_TIMES = {
    "message.received": ("created_at", "sent_at"),
    "message.sent": ("sent_at", "created_at"),
    "message.delivered": ("delivered_at",),
    "message.read": ("read_at",),
    "message.reaction": ("updated_at",),
    "message.failed": ("updated_at",),
}
MAX_ID_CHARACTERS = 200
# Fields that only messages have.
MESSAGE_FIELDS = frozenset({"direction", "text", "status", "channel", "attachments", "effect", "reply_to"})
# The escape of a character that databases refuse, after an even number of backslashes.
NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
CHAT_FIELDS = frozenset(name for name in Chat.__struct_encode_fields__ if not name.startswith("_")) - {"id"}
# Anywhere else than in a chat, the other names mean something else.
CHAT_FIELDS_ANYWHERE = ("from_handle", "remote_handle", "is_group")
KNOWN_MESSAGE_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(Message))
TYPING_WORDS = {
    "started": True, "start": True, "typing": True, "on": True, "true": True,
    "stopped": False, "stop": False, "idle": False, "off": False, "false": False,
}  # fmt: skip

Payload = dict[str, Any]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `webhook_events`.

    `occurred_at` is the time in the payload, or else the time of receipt; `message_at` is the message's own time.
    `message` and `chat` have the fields of the message and of its chat in the payload, by the API's names.
    """

    event_id: str
    event_type: str | None = None
    chat_id: str | None = None
    message_id: str | None = None
    handle: str | None = None
    is_typing: bool | None = None
    direction: str | None = None
    status: str | None = None
    reaction: str | None = None
    message_at: datetime | None = None
    occurred_at: datetime
    received_at: datetime
    payload: msgspec.Raw
    message: Payload = {}
    chat: Payload = {}
    has_impossible_chat: bool = False

    @property
    def is_about_message(self) -> bool:
        return self.message_id is not None and self.event_type in MESSAGE_TYPES

    @property
    def has_unreadable_message(self) -> bool:
        return self.message_id is None and self.event_type in MESSAGE_TYPES


def parse_event(delivery: Delivery) -> Event | None:
    """Parse a delivery; null if its body is not JSON."""
    try:
        text = _to_strict_json(delivery.body)
        payload = parse_json(text)
    except (ValueError, RecursionError):
        return None
    top = payload if isinstance(payload, dict) else {}
    event_type = read_event_type(top)
    objects = list(_list_objects(top))
    message = _find_message(objects, event_type)
    # In the message, these names are times of the message.
    others = [item for item in objects if item is not message]
    occurred_at = _find_time(others, "occurred_at", "timestamp", "created_at")
    if occurred_at is None and message is not None:
        occurred_at = _find_time([message], *MESSAGE_TIMES.get(event_type or "", ()))
    chat_id, has_impossible_chat = _find_chat_id(objects)
    return Event(
        event_id=delivery.event_id,
        event_type=event_type,
        chat_id=chat_id,
        message_id=_find_text(objects, "message_id") or (_find_text([message], "id") if message else None),
        handle=_find_text(objects, "handle", "sender", "from", "remote_handle"),
        is_typing=_find_typing(objects) if event_type == TYPING else None,
        direction=_find_text(objects, "direction"),
        status=_find_text(objects, "status"),
        reaction=_find_reaction(objects) if event_type == "message.reaction" else None,
        message_at=_find_time([message], "created_at", "sent_at") if message else None,
        occurred_at=occurred_at or delivery.received_at,
        received_at=delivery.received_at,
        payload=msgspec.Raw(remove_links(text.encode())),
        message=_select_fields(message, top),
        chat=_find_chat(objects, chat_id),
        has_impossible_chat=has_impossible_chat,
    )


def drop_duplicates(events: Iterable[Event]) -> list[Event]:
    """Drop repeated events; the first one stays."""
    by_id: dict[str, Event] = {}
    for event in events:
        by_id.setdefault(event.event_id, event)
    return list(by_id.values())


def _to_strict_json(body: str) -> str:
    """Rewrite a body as strict JSON without lone surrogates and NUL, which databases refuse.

    Raises as `parse_json`.
    """
    text = fix_encoding(body.encode()).decode()
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        text = json.dumps(parse_json(text))
    return NUL_ESCAPE.sub(r"\1\\ufffd", text) if "\\u0000" in text else text


def is_possible_id(value: Any) -> bool:
    """Return whether the API can have a chat with this id. In a URL path, dots or slashes would change the route."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_ID_CHARACTERS
        and value.isprintable()
        and value.strip() not in ("", ".", "..")
        and not {"/", "\\", "\ufffd"} & set(value)
    )


def _find_chat_id(objects: list[Payload]) -> tuple[str | None, bool]:
    """Return the id of the chat that an event is about, and whether it only has impossible ids."""
    candidates = [item.get(name) for item in objects for name in CHAT_IDS]
    candidates += [chat.get("id") for chat in _find_objects(objects, CHAT_OBJECTS)]
    chat_id = next((value for value in candidates if is_possible_id(value)), None)
    return chat_id, chat_id is None and any(value is not None for value in candidates)


def _list_objects(top: Payload) -> Iterator[Payload]:
    """Yield the payload and its inner objects that are about the event, outer ones first."""
    yield top
    for name in (*INNER, MESSAGE_OBJECT):
        inner = top.get(name)
        if isinstance(inner, dict):
            yield from _list_objects(inner)


def _find_objects(objects: Iterable[Payload], names: tuple[str, ...]) -> list[Payload]:
    return [inner for item in objects for name in names if isinstance(inner := item.get(name), dict)]


def _find_message(objects: list[Payload], event_type: str | None) -> Payload | None:
    """Return the message in the payload, which may be the payload itself."""
    if event_type not in MESSAGE_TYPES:
        return None
    messages = _find_objects(objects, (MESSAGE_OBJECT,))
    if messages:
        return messages[0]
    return next((item for item in reversed(objects) if item.keys() & MESSAGE_FIELDS and not _is_event(item)), None)


def _find_chat(objects: list[Payload], chat_id: str | None) -> Payload:
    """Return the fields of the chat: those of its own object, or else those next to the fields of the message."""
    shown = {name: item[name] for item in reversed(objects) for name in CHAT_FIELDS_ANYWHERE if name in item}
    for chat in _find_objects(objects, CHAT_OBJECTS):
        if chat.get("id") in (None, chat_id):
            shown |= {name: value for name, value in chat.items() if name in CHAT_FIELDS}
    return shown


def _select_fields(message: Payload | None, top: Payload) -> Payload:
    """Return the fields of a message. If it is the payload itself, fields unknown in messages are the event's."""
    if message is None or message is not top:
        return message or {}
    return {name: value for name, value in message.items() if name in KNOWN_MESSAGE_FIELDS}


def _is_event(item: Payload) -> bool:
    """Return whether the id of an object is not that of the message."""
    return str(item.get("id", "")).startswith("evt") or "message_id" in item


def _find_text(objects: Iterable[Payload], *names: str) -> str | None:
    values = (item.get(name) for item in objects for name in names)
    return next((value for value in values if isinstance(value, str) and value), None)


def _find_time(objects: Iterable[Payload], *names: str) -> datetime | None:
    times = (parse_time(item.get(name)) for item in objects for name in names)
    return next((at for at in times if at is not None), None)


def _find_typing(objects: Iterable[Payload]) -> bool | None:
    for item in objects:
        for name in ("typing", "is_typing", "state", "status"):
            value = item.get(name)
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in TYPING_WORDS:
                return TYPING_WORDS[value.lower()]
    return None


def _find_reaction(objects: Iterable[Payload]) -> str | None:
    """Return the reaction: a word, an emoji, or an object as JSON."""
    for item in objects:
        for name in ("reaction", "emoji"):
            value = item.get(name)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, dict):
                text = _find_text([value], "reaction", "emoji", "type", "value")
                return text or json.dumps(value, ensure_ascii=False)
    return None
