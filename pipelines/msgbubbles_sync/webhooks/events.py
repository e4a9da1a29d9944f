"""What an event says, wherever its payload says it.

The vendor documents the names of the events and that a delivery is not wrapped in `data`; how a payload is built is not
documented where we can read it. So each fact is looked for in the places where such payloads have it: at the top, and
in an object of the event (`message`, `data`, ...). What is not found is null; the whole payload is kept in any case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from msgbubbles.envelope import fix_encoding
from msgbubbles.lenient import without_links
from msgbubbles.models import Message

from .bodies import parse_json
from .deliveries import read_event_type
from .spool import Delivery
from .times import parse_time

MESSAGE_TYPES = (
    "message.received", "message.sent", "message.delivered", "message.read", "message.failed", "message.reaction",
)  # fmt: skip
TYPING = "conversation.typing"
KNOWN_TYPES = (*MESSAGE_TYPES, TYPING)
# Objects of a payload that say more of the event, and of those, objects that do.
INNER = ("data", "object", "payload", "event")
ABOUT_MESSAGE = "message"
ABOUT_CHAT = ("conversation", "chat")
CHAT_IDS = ("conversation_id", "chat_id")
MAX_ID_CHARACTERS = 200
# What only a message has: an object with one of these and an id is one.
OF_A_MESSAGE = frozenset({"direction", "text", "status", "channel", "attachments", "effect", "reply_to"})


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `webhook_events`. `occurred_at` is the API's time of it, or when it came where the payload has none;
    `message_at` the message's own time. `message` is what the payload shows of it, by the names of the API.
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
    message: dict[str, Any] = {}
    has_impossible_chat: bool = False

    @property
    def is_of_a_message(self) -> bool:
        return self.message_id is not None and self.event_type in MESSAGE_TYPES


def parse_event(delivery: Delivery) -> Event | None:
    """What a delivery says; null where its body is no JSON at all."""
    try:
        text = _storable(delivery.body)
        payload = parse_json(text)
    except (ValueError, RecursionError):
        return None
    top = payload if isinstance(payload, dict) else {}
    event_type = read_event_type(top)
    # Of the same name in two objects, the inner one is about the message or the chat, the outer about the event.
    objects = list(_objects(top))
    message = _message_among(objects, event_type)
    occurred_at = _first_time([one for one in objects if one is not message], "occurred_at", "timestamp", "created_at")
    if occurred_at is None and message is not None:
        occurred_at = _first_time([message], *_OWN_TIMES.get(event_type or "", ()))
    chat_id, has_impossible_chat = _chat_among(objects)
    return Event(
        event_id=delivery.event_id,
        event_type=event_type,
        chat_id=chat_id,
        message_id=_first(objects, "message_id") or (_text(message, "id") if message else None),
        handle=_first(objects, "handle", "sender", "from", "remote_handle"),
        is_typing=_typing(objects) if event_type == TYPING else None,
        direction=_first(objects, "direction"),
        status=_first(objects, "status"),
        reaction=_reaction(objects) if event_type == "message.reaction" else None,
        message_at=_first_time([message], "created_at", "sent_at") if message else None,
        occurred_at=occurred_at or delivery.received_at,
        received_at=delivery.received_at,
        payload=msgspec.Raw(without_links(text.encode())),
        message=_fields(message, top),
        has_impossible_chat=has_impossible_chat,
    )


_OWN_TIMES = {
    "message.received": ("created_at", "sent_at"),
    "message.sent": ("sent_at", "created_at"),
    "message.delivered": ("delivered_at",),
    "message.read": ("read_at",),
    "message.reaction": ("updated_at",),
    "message.failed": ("updated_at",),
}


def drop_duplicates(events: Iterable[Event]) -> list[Event]:
    """Without what was delivered again: the first that came stays."""
    found: dict[str, Event] = {}
    for event in events:
        found.setdefault(event.event_id, event)
    return list(found.values())


# The escape of a character that no database takes, behind an even number of backslashes.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def _storable(body: str) -> str:
    """The same as strict JSON, without what a database refuses: half an emoji, and the character NUL. Raises as
    `parsed`.
    """
    text = fix_encoding(body.encode()).decode()
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        text = json.dumps(parse_json(text))
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text


def is_possible_id(value: Any) -> bool:
    """Whether the API can have a chat of this id, and can be asked for it. It stands in the path of a URL: dots and
    slashes would make another route of it.
    """
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_ID_CHARACTERS
        and value.isprintable()
        and value.strip() not in ("", ".", "..")
        and not {"/", "\\", "\ufffd"} & set(value)
    )


def _chat_among(objects: list[dict[str, Any]]) -> tuple[str | None, bool]:
    """The id of the chat that an event is about, and whether it only names ones that are impossible."""
    given = [one.get(name) for one in objects for name in CHAT_IDS]
    given += [one.get("id") for one in _named(objects, ABOUT_CHAT)]
    chat_id = next((one for one in given if is_possible_id(one)), None)
    return chat_id, chat_id is None and any(one is not None for one in given)


def _objects(top: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The payload and the objects in it that are about the event, the outer ones first."""
    yield top
    for name in (*INNER, ABOUT_MESSAGE):
        inner = top.get(name)
        if isinstance(inner, dict):
            yield from _objects(inner)


def _named(objects: Iterable[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    wanted = tuple(names)
    return [inner for one in objects for name in wanted if isinstance(inner := one.get(name), dict)]


def _message_among(objects: list[dict[str, Any]], event_type: str | None) -> dict[str, Any] | None:
    """The message that the payload shows, which may be the payload itself."""
    if event_type not in MESSAGE_TYPES:
        return None
    named = _named(objects, [ABOUT_MESSAGE])
    if named:
        return named[0]
    return next((one for one in reversed(objects) if one.keys() & OF_A_MESSAGE and not _is_of_event(one)), None)


def _fields(message: dict[str, Any] | None, top: dict[str, Any]) -> dict[str, Any]:
    """The fields of a message. Where the payload is the message, what no message is known to have is the event's."""
    if message is None or message is not top:
        return message or {}
    return {name: value for name, value in message.items() if name in _OF_MESSAGES}


_OF_MESSAGES = frozenset(field.encode_name for field in msgspec.structs.fields(Message))


def _is_of_event(found: dict[str, Any]) -> bool:
    """Whether the id of an object is the event's, or one of another message."""
    return str(found.get("id", "")).startswith("evt") or "message_id" in found


def _first(objects: Iterable[dict[str, Any]], *names: str) -> str | None:
    for one in objects:
        found = _text(one, *names)
        if found is not None:
            return found
    return None


def _text(found: dict[str, Any], *names: str) -> str | None:
    return next((value for name in names if isinstance(value := found.get(name), str) and value), None)


def _first_time(objects: Iterable[dict[str, Any]], *names: str) -> datetime | None:
    for one in objects:
        for name in names:
            at = parse_time(one.get(name))
            if at is not None:
                return at
    return None


def _typing(objects: Iterable[dict[str, Any]]) -> bool | None:
    for one in objects:
        for name in ("typing", "is_typing", "state", "status"):
            value = one.get(name)
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in _TYPING_WORDS:
                return _TYPING_WORDS[value.lower()]
    return None


_TYPING_WORDS = {
    "started": True, "start": True, "typing": True, "on": True, "true": True,
    "stopped": False, "stop": False, "idle": False, "off": False, "false": False,
}  # fmt: skip


def _reaction(objects: Iterable[dict[str, Any]]) -> str | None:
    """What the reaction is: a word or an emoji, or an object as JSON."""
    for one in objects:
        for name in ("reaction", "emoji"):
            value = one.get(name)
            if isinstance(value, str) and value:
                return value
            if isinstance(value, dict):
                return _text(value, "reaction", "emoji", "type", "value") or json.dumps(value, ensure_ascii=False)
    return None
